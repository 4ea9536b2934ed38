# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Image corruptions: sizes, determinism, severity, and agreement with the `imagecorruptions` library."""

import io

import numpy as np
import pytest
from PIL import Image

from hf_segformer.data import corruptions as module
from hf_segformer.data import draw_scene
from hf_segformer.data.corruptions import CORRUPTIONS, corrupt
from oracles import run_oracle

NOISES = ("gaussian_noise", "impulse_noise", "shot_noise", "speckle_noise")
# Rungs of the published ladders that go down: less saturation up to 2, more from 3 on; fewer passes of displacement;
# water up to 3, mud from 4 on; sparser flakes at 3; and with frost the picture itself fades.
LADDERS = {"saturate": [(1, 2), (3, 4, 5)], "glass_blur": [(1, 3, 5)], "snow": [(1, 2, 5)], "frost": [(1,)]}


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """A drawn scene of odd size."""
    return draw_scene(3, 149)[0][:107].copy()


def distance(corrupted: np.ndarray, clean: np.ndarray) -> float:
    return float(np.abs(corrupted.astype(float) - clean).mean())


def test_the_papers_averages():
    assert len(CORRUPTIONS) == 16
    assert {name for name, count in CORRUPTIONS.items() if count == 3} == set(NOISES)
    assert sum(CORRUPTIONS.values()) == 4 * 3 + 12 * 5


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_severity_on_an_odd_size(name, picture):
    clean = picture.copy()
    results = [corrupt(picture, name, severity, seed=5) for severity in range(1, 6)]
    assert np.array_equal(picture, clean)
    for severity, result in enumerate(results, start=1):
        assert result.dtype == np.uint8 and result.shape == picture.shape
        assert np.array_equal(result, corrupt(picture, name, severity, seed=5))
    for ladder in LADDERS.get(name, [(1, 2, 3, 4, 5)]):
        distances = [distance(results[severity - 1], picture) for severity in ladder]
        assert distances[0] > 0 and distances == sorted(distances), f"{name}: {distances}"


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_seed(name, picture):
    deterministic = ("defocus_blur", "gaussian_blur", "brightness", "contrast", "saturate", "jpeg_compression")
    same = np.array_equal(corrupt(picture, name, 3, seed=0), corrupt(picture, name, 3, seed=1))
    assert same == (name in deterministic)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (6, 2), (3, 260)])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_tiny_sizes(name, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    for severity in (1, 4, 5):
        assert corrupt(image, name, severity).shape == image.shape
        assert corrupt(np.zeros_like(image), name, severity).shape == image.shape


def test_results_do_not_depend_on_the_global_random_state(picture):
    np.random.seed(0)
    first = corrupt(picture, "snow", 4, seed=9)
    np.random.seed(1)
    assert np.array_equal(first, corrupt(picture, "snow", 4, seed=9))


def test_jpeg_is_pillows(picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=10)
    assert np.array_equal(corrupt(picture, "jpeg_compression", 4), np.asarray(Image.open(file)))


@pytest.mark.parametrize(("name", "deviation"), [("gaussian_noise", 0.18), ("speckle_noise", 0.35)])
def test_noise_has_the_published_strength(name, deviation):
    image = np.full((200, 211, 3), 100, np.uint8)
    noise = corrupt(image, name, 3).astype(float) - 100
    expected = 255 * deviation if name == "gaussian_noise" else 100 * deviation
    # Few values of these distributions are clipped, and truncation shifts by half a grey level.
    assert noise.std() == pytest.approx(expected, rel=0.02) and abs(noise.mean() + 0.5) < 0.5


def test_shot_and_impulse_noise_have_the_published_strength():
    image = np.full((200, 211, 3), 85, np.uint8)
    shot = corrupt(image, "shot_noise", 1).astype(float)
    assert shot.std() == pytest.approx((85 / 255 / 60) ** 0.5 * 255, rel=0.02)
    impulses = corrupt(image, "impulse_noise", 3)
    assert (impulses == 0).mean() == pytest.approx(0.045, abs=0.003)
    assert (impulses == 255).mean() == pytest.approx(0.045, abs=0.003)


class Draws:
    """The legacy generator, through which the library draws, under the methods of the new one."""

    def __init__(self, seed):
        state = np.random.RandomState(seed)
        self.normal, self.uniform, self.poisson, self.integers = (
            state.normal,
            state.uniform,
            state.poisson,
            state.randint,
        )
        # The library hands its own seed to scikit-image.
        self.random = np.random.default_rng(seed).random


def test_displacement_equals_the_loop():
    image = np.random.default_rng(1).integers(0, 256, (13, 17, 3), dtype=np.uint8)
    for reach in (1, 2, 4):
        draws, expected = np.random.RandomState(reach), image.copy()
        for row in range(13 - reach, reach, -1):
            for column in range(17 - reach, reach, -1):
                across, down = draws.randint(-reach, reach, size=2)
                expected[row, column] = expected[row + down, column + across]
        assert np.array_equal(module._displaced(image, reach, Draws(reach)), expected)


LIBRARY = """
import sys, types
import numpy as np
numba = types.ModuleType("numba")
numba.njit = lambda *args, **kwargs: lambda function: function
sys.modules["numba"] = numba
from imagecorruptions import corrupt
image, results = np.load(sys.argv[1]), {}
for name in sys.argv[3:]:
    for severity in range(1, 6):
        np.random.seed(severity)
        options = {"seed": severity} if name in ("impulse_noise", "glass_blur") else {}
        results[f"{name} {severity}"] = corrupt(image, severity, name, **options)
np.savez(sys.argv[2], **results)
"""


@pytest.fixture(scope="module")
def library(picture, tmp_path_factory) -> dict[str, np.ndarray]:
    """Results of imagecorruptions-imaug 1.1.5 from equal random draws."""
    folder = tmp_path_factory.mktemp("library")
    np.save(folder / "image.npy", picture)
    names = [name for name in CORRUPTIONS if name != "frost"]
    run_oracle("imagecorruptions", LIBRARY, folder / "image.npy", folder / "results.npz", *names)
    return dict(np.load(folder / "results.npz"))


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name != "frost"])
def test_equals_the_library(name, picture, library):
    for severity in range(1, 6):
        ours = module._as_picture(module._FUNCTIONS[name](picture, severity, Draws(severity)))
        difference = np.abs(ours.astype(int) - library[f"{name} {severity}"])
        assert difference.max() <= 1, f"{name} {severity}: {difference.max()}, {(difference > 1).mean():.4f}"


def test_photographs_of_frost(picture, tmp_path):
    texture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(texture).save(tmp_path / "frost1.png")
    result = corrupt(picture, "frost", 5, frost_textures=tmp_path)
    assert result.shape == picture.shape
    assert not np.array_equal(result, corrupt(picture, "frost", 5))
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.new("RGB", (300, 200), (10, 100, 200)).save(flat / "frost.png")
    expected = (0.6 * picture + 0.75 * np.array([10, 100, 200])).clip(0, 255).astype(int)
    assert np.abs(corrupt(picture, "frost", 5, frost_textures=flat) - expected).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "glas_blur"}, "did you mean 'glass_blur'"),
        ({"name": "zoom_blur"}, "name must be one of"),
        ({"severity": 0}, "severity must be a whole number from 1 to 5, got 0"),
        ({"severity": 6}, "got 6"),
        ({"severity": 2.5}, "got 2.5"),
        ({"severity": True}, "got True"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"seed": 0.5}, "got 0.5"),
        ({"image": np.zeros((4, 5, 3))}, "float64"),
        ({"image": np.zeros((4, 5), np.uint8)}, r"\(4, 5\)"),
        ({"image": np.zeros((0, 5, 3), np.uint8)}, "must have pixels"),
        ({"name": "frost", "frost_textures": "no-such-folder"}, "frost_textures must be a folder.*no-such-folder"),
    ],
)
def test_wrong_arguments(arguments, message):
    defaults = {"image": np.zeros((4, 5, 3), np.uint8), "name": "fog", "severity": 1}
    with pytest.raises(ValueError, match=message):
        corrupt(**(defaults | arguments))
