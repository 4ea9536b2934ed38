# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Draw numbers: deterministic in (seed, draw), whatever the workers, the ranks, the accumulation and restarts."""

import pickle
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hf_segformer.data import DrawSampler, TrainingSamples, TrainingTransform, collate_samples, load_dataset

TRANSFORM = TrainingTransform(crop_size=(32, 32))


@pytest.fixture(scope="module")
def data():
    return load_dataset("scenes", num_train=7, num_validation=2, size=64)


def loaded(samples, sampler, num_workers, count):
    loader = DataLoader(samples, batch_sampler=sampler, num_workers=num_workers, collate_fn=collate_samples)
    return list(islice(loader, count))


def assert_equal_batches(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys() == {"pixel_values", "labels", "bad_samples"}
        assert one["bad_samples"] == other["bad_samples"] == []
        assert all(torch.equal(one[key], other[key]) for key in ("pixel_values", "labels"))


def test_every_epoch_shows_every_image_once_in_another_order(data):
    samples = TrainingSamples(data, TRANSFORM, seed=1)
    epochs = [[samples.index_of(epoch * 7 + i) for i in range(7)] for epoch in range(6)]
    assert all(sorted(order) == list(range(7)) for order in epochs)
    assert len({tuple(order) for order in epochs}) > 3
    other = TrainingSamples(data, TRANSFORM, seed=2)
    assert [other.index_of(i) for i in range(7)] != epochs[0]


def test_draws_can_be_taken_in_any_order(data):
    forward = TrainingSamples(data, TRANSFORM, seed=1)
    backward = TrainingSamples(data, TRANSFORM, seed=1)
    ahead = [forward[n] for n in range(12)]
    back = [backward[n] for n in reversed(range(12))][::-1]
    assert_equal_batches(ahead, back)
    assert ahead[0]["pixel_values"].dtype == torch.float32 and ahead[0]["labels"].dtype == torch.int64
    assert ahead[0]["pixel_values"].shape == (3, 32, 32) and ahead[0]["labels"].shape == (32, 32)


def test_one_image_is_augmented_differently_each_time(data):
    samples = TrainingSamples(data, TRANSFORM, seed=0)
    same_image = [n for n in range(28) if samples.index_of(n) == 3]
    first, second, *_ = (samples[n]["pixel_values"] for n in same_image)
    assert not torch.equal(first, second)


def test_seed_changes_the_augmentation_not_only_the_order(data):
    one, two = TrainingSamples(data, TRANSFORM, seed=1), TrainingSamples(data, TRANSFORM, seed=2)
    pairs = [(n, m) for n in range(7) for m in range(7) if one.index_of(n) == two.index_of(m) and n == m]
    n, m = pairs[0] if pairs else (0, [two.index_of(m) for m in range(7)].index(one.index_of(0)))
    assert not torch.equal(one[n]["pixel_values"], two[m]["pixel_values"])


def test_global_random_state_is_neither_read_nor_moved(data):
    samples = TrainingSamples(data, TRANSFORM)
    np.random.seed(0)
    torch.manual_seed(0)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    first = samples[3]
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])
    np.random.seed(1)
    assert torch.equal(samples[3]["pixel_values"], first["pixel_values"])


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")
@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_change_nothing(data, num_workers):
    samples = TrainingSamples(data, TRANSFORM, seed=4)
    alone = loaded(samples, DrawSampler(3), 0, 6)
    assert_equal_batches(alone, loaded(samples, DrawSampler(3), num_workers, 6))


class OpenCVThreads(torch.utils.data.Dataset):
    """Shows how many threads OpenCV uses after a transform."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        import cv2

        image, label = np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40), np.uint8)
        TRANSFORM(image, label, np.random.default_rng(index))
        return cv2.getNumThreads()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_opencv_keeps_to_one_thread_in_workers_only(num_workers):
    import cv2

    before = cv2.getNumThreads()
    counts = set(DataLoader(OpenCVThreads(), batch_size=None, num_workers=num_workers))
    assert counts == ({1} if num_workers else {before})
    assert cv2.getNumThreads() == before


def test_restart_goes_on_where_the_run_stopped(data):
    whole = loaded(TrainingSamples(data, TRANSFORM, seed=4), DrawSampler(2, gradient_accumulation_steps=2), 0, 8)
    resumed = TrainingSamples(data, TRANSFORM, seed=4)
    rest = loaded(resumed, DrawSampler(2, gradient_accumulation_steps=2, start_step=3), 2, 2)
    assert_equal_batches(whole[6:8], rest)


def draws_of_step(step, batch_size, world_size, accumulation):
    """Draw numbers that all ranks together consume in one optimizer step."""
    draws = []
    for rank in range(world_size):
        sampler = DrawSampler(batch_size, rank, world_size, accumulation)
        first = step * accumulation
        draws += [n for batch in islice(sampler, first, first + accumulation) for n in batch]
    return draws


@pytest.mark.parametrize(
    ("batch_size", "world_size", "accumulation"), [(12, 1, 1), (4, 3, 1), (3, 1, 4), (2, 3, 2), (1, 2, 6)]
)
def test_step_consumes_the_same_draws_however_the_batch_is_made_up(batch_size, world_size, accumulation):
    for step in (0, 1, 5):
        draws = draws_of_step(step, batch_size, world_size, accumulation)
        assert len(draws) == 12 and sorted(draws) == list(range(12 * step, 12 * step + 12))


@pytest.mark.parametrize("start", [0, 1, 4])
def test_start_and_stop(start):
    options = {"batch_size": 2, "rank": 1, "world_size": 3, "gradient_accumulation_steps": 2}
    full = list(islice(DrawSampler(**options), 14))
    part = DrawSampler(**options, start_step=start, stop_step=7)
    assert list(part) == full[2 * start :] and len(part) == 14 - 2 * start
    assert list(part) == full[2 * start :]  # a second pass starts again


def test_endless_sampler_has_no_length():
    with pytest.raises(TypeError, match="no length"):
        len(DrawSampler(2))
    assert len(list(islice(DrawSampler(2), 1000))) == 1000


def test_pickled_samples_give_the_same(data):
    samples = TrainingSamples(data, TRANSFORM, seed=9)
    copy = pickle.loads(pickle.dumps(samples))
    assert_equal_batches([samples[5]], [copy[5]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 1, "world_size": 0}, "world_size must be at least 1, got 0"),
        (
            {"batch_size": 1, "gradient_accumulation_steps": -1},
            "gradient_accumulation_steps must be at least 1, got -1",
        ),
        ({"batch_size": 1, "rank": 2, "world_size": 2}, r"rank must be in 0\.\.1, got 2"),
    ],
)
def test_sampler_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        DrawSampler(**options)


def test_negative_seed(data):
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        TrainingSamples(data, TRANSFORM, seed=-1)
