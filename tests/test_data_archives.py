# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Data sets read from their zip files: the samples of the unpacked ones, from threads and processes too; errors."""

import json
import multiprocessing
import pickle
import struct
import zipfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import datasets
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from hf_segformer.data import archives, load_dataset, undecoded
from hf_segformer.data.archives import is_member_path, member_names, member_path, read_member
from published_data import write_ade20k, write_cityscapes, write_coco_stuff, zip_folder


@pytest.fixture(scope="module")
def ade(tmp_path_factory):
    """The unpacked data set, and the folder with its zip file."""
    unpacked, packed = tmp_path_factory.mktemp("ade"), tmp_path_factory.mktemp("ade_zip")
    zip_folder(write_ade20k(unpacked), packed / "ADEChallengeData2016.zip")
    return unpacked, packed


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory):
    unpacked = write_cityscapes(tmp_path_factory.mktemp("city"))
    packed = tmp_path_factory.mktemp("city_zip")
    zip_folder(unpacked / "leftImg8bit", packed / "leftImg8bit_trainvaltest.zip", zipfile.ZIP_STORED)
    zip_folder(unpacked / "gtFine", packed / "gtFine_trainvaltest.zip")
    return unpacked, packed


@pytest.fixture(scope="module")
def coco_stuff(tmp_path_factory):
    unpacked = write_coco_stuff(tmp_path_factory.mktemp("coco"), "images/{}", "maps/{}")
    packed = tmp_path_factory.mktemp("coco_zip")
    for split in ("train2017", "val2017"):
        zip_folder(unpacked / "images" / split, packed / f"{split}.zip")
    with zipfile.ZipFile(packed / "stuffthingmaps_trainval2017.zip", "w") as file:
        for path in sorted((unpacked / "maps").rglob("*.png")):
            file.write(path, path.relative_to(unpacked / "maps"))
    (unpacked / "maps").rename(unpacked / "annotations")
    return unpacked, packed


def assert_same_data(one, other):
    for split in ("train", "validation"):
        mine, theirs = undecoded(getattr(one, split)), undecoded(getattr(other, split))
        assert mine["file_name"][:] == theirs["file_name"][:] and len(mine) > 1
        for a, b in zip(mine, theirs, strict=True):
            for left, right in zip(one.read_sample(a), other.read_sample(b), strict=True):
                np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("name", ["ade20k", "cityscapes", "coco-stuff"])
def test_zip_files_give_the_same_samples(request, name):
    unpacked, packed = request.getfixturevalue({"ade20k": "ade", "coco-stuff": "coco_stuff"}.get(name, name))
    data = load_dataset(name, packed)
    assert is_member_path(undecoded(data.train)[0]["image"]["path"])
    assert_same_data(data, load_dataset(name, unpacked))
    assert [path.suffix for path in packed.iterdir()] == [".zip"] * len(list(packed.iterdir()))  # nothing is unpacked


def test_the_zip_file_itself_as_data_root(ade):
    unpacked, packed = ade
    assert_same_data(load_dataset("ade20k", packed / "ADEChallengeData2016.zip"), load_dataset("ade20k", unpacked))


def test_one_half_unpacked(cityscapes, tmp_path):
    unpacked, packed = cityscapes
    (tmp_path / "leftImg8bit").symlink_to(unpacked / "leftImg8bit")
    (tmp_path / "gtFine_trainvaltest.zip").symlink_to(packed / "gtFine_trainvaltest.zip")
    assert_same_data(load_dataset("cityscapes", tmp_path), load_dataset("cityscapes", unpacked))
    (tmp_path / "gtFine_trainvaltest.zip").unlink()
    (tmp_path / "leftImg8bit").unlink()
    (tmp_path / "leftImg8bit_trainvaltest.zip").symlink_to(packed / "leftImg8bit_trainvaltest.zip")
    message = r"no such folder: .*gtFine/train \(nor in leftImg8bit_trainvaltest\.zip\); no such .*gtFine/val"
    with pytest.raises(ValueError, match=message):
        load_dataset("cityscapes", tmp_path)


def test_decoded_rows(ade):
    """Rows as `datasets` decodes them, and the same ones through its own way into zip files."""
    unpacked, packed = ade
    rows, plain = load_dataset("ade20k", packed).train, load_dataset("ade20k", unpacked).train
    through_fsspec = rows.cast_column("image", datasets.Image(mode="RGB"))
    for row, expected, slow in zip(rows, plain, through_fsspec, strict=True):
        assert isinstance(row["image"], Image.Image)
        np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(expected["image"]))
        np.testing.assert_array_equal(np.asarray(row["annotation"]), np.asarray(expected["annotation"]))
        np.testing.assert_array_equal(np.asarray(slow["image"]), np.asarray(expected["image"]))


def test_column_type_is_an_ordinary_one_to_others(ade, tmp_path):
    unpacked, packed = ade
    rows, plain = load_dataset("ade20k", packed).train, load_dataset("ade20k", unpacked).train
    assert rows.features == plain.features and plain.features == rows.features
    assert len(datasets.concatenate_datasets([rows, plain, rows])) == 15
    rows.save_to_disk(tmp_path / "saved")
    again = datasets.load_from_disk(tmp_path / "saved")
    assert type(again.features["image"]) is datasets.Image and len(again) == 5
    np.testing.assert_array_equal(np.asarray(again[3]["annotation"]), np.asarray(plain[3]["annotation"]))


def count_directory_reads(monkeypatch):
    reads, real = [], zipfile.ZipFile

    def counted(*args, **options):
        reads.append(args)
        return real(*args, **options)

    monkeypatch.setattr(zipfile, "ZipFile", counted)
    return reads


def test_the_directory_is_read_once(ade, tmp_path, monkeypatch):
    path = tmp_path / "ADEChallengeData2016.zip"
    path.write_bytes((ade[1] / path.name).read_bytes())
    reads = count_directory_reads(monkeypatch)
    data = load_dataset("ade20k", tmp_path)
    for row in data.train:  # decoded by datasets
        data.read_sample(row)
    for row in undecoded(data.validation):
        data.read_sample(row)
    assert len(reads) == 1


def wrongly_read(task):
    """Read the members of a zip file again and again, starting anywhere; name those that differ from the files."""
    archive, unpacked, start, count = task
    members = [name for name in member_names(archive) if name.endswith((".jpg", ".png"))]
    chosen = [members[(start + 7 * step) % len(members)] for step in range(count)]
    contents = {name: (unpacked / name).read_bytes() for name in members}
    return [name for name in chosen if read_member(member_path(archive, name)) != contents[name]]


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_readers_do_not_disturb_each_other(ade, kind):
    if kind == "processes" and "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system cannot fork")
    unpacked, packed = ade
    tasks = [(packed / "ADEChallengeData2016.zip", unpacked, start, 1500) for start in range(4)]
    wrongly_read(tasks[0])  # what is open in this process now must not be shared with the others
    context = multiprocessing.get_context("fork") if kind == "processes" else None
    pool = ProcessPoolExecutor(4, mp_context=context) if kind == "processes" else ThreadPoolExecutor(4)
    with pool:
        assert list(pool.map(wrongly_read, tasks)) == [[]] * 4


@pytest.mark.parametrize("name", ["ade20k", "coco-stuff"])  # Cityscapes' are small, and may hold train ids
def test_large_zip_files_of_unpacked_data_sets_stay_closed(request, monkeypatch, tmp_path, name):
    unpacked, packed = request.getfixturevalue({"ade20k": "ade", "coco-stuff": "coco_stuff"}[name])
    for path in (*unpacked.iterdir(), *packed.iterdir()):
        (tmp_path / path.name).symlink_to(path)
    reads = count_directory_reads(monkeypatch)
    archives._members.cache_clear()
    assert_same_data(load_dataset(name, tmp_path), load_dataset(name, unpacked))
    assert reads == []


class Samples(Dataset):
    """What `TrainingSamples` and evaluation do with a data set, in the process that asks."""

    def __init__(self, data):
        self.data, self.rows = data, undecoded(data.train)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return index, *self.data.read_sample(self.rows[index])


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
def test_workers_of_a_data_loader(ade):
    unpacked, packed = ade
    plain = load_dataset("ade20k", unpacked)
    expected = [plain.read_sample(row) for row in undecoded(plain.train)]
    samples = Samples(load_dataset("ade20k", packed))
    loader = DataLoader(samples, batch_size=None, num_workers=2, multiprocessing_context="fork")
    seen = []
    for index, image, label in loader:
        seen.append(index)
        np.testing.assert_array_equal(image, expected[index][0])
        np.testing.assert_array_equal(label, expected[index][1])
    assert sorted(seen) == [0, 1, 2, 3, 4]


def test_data_goes_to_a_process_that_has_read_nothing_yet(ade):
    data = load_dataset("ade20k", ade[1])
    content = pickle.dumps(data)
    assert len(content) < 100_000  # paths, no pictures
    archives._members.cache_clear()
    copy = pickle.loads(content)
    np.testing.assert_array_equal(copy.read_sample(copy.train[4])[1], data.read_sample(data.train[4])[1])


def test_large_offsets_prefixes_and_unusual_headers(tmp_path):
    """A self-extracting zip has bytes before it; streamed zips leave the sizes out of the local header."""

    class Unseekable:
        def __init__(self, file):
            self._file = file

        def write(self, data):
            return self._file.write(data)

        def flush(self):
            self._file.flush()

    path = tmp_path / "odd.zip"
    with open(path, "wb") as file:
        file.write(b"#!/bin/sh\n")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        info = zipfile.ZipInfo("folder/one name.txt")
        info.extra = b"\xfe\xca\x04\x00abcd"
        archive.writestr(info, "one" * 99, zipfile.ZIP_DEFLATED)
        with archive.open("zip64.txt", "w", force_zip64=True) as member:
            member.write(b"two" * 50)
        archive.writestr("empty.txt", b"")
    streamed = tmp_path / "streamed.zip"
    with open(streamed, "wb") as file, zipfile.ZipFile(Unseekable(file), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("three.txt", "three" * 20)
    assert read_member(member_path(path, "folder/one name.txt")) == b"one" * 99
    assert read_member(member_path(path, "zip64.txt")) == b"two" * 50
    assert read_member(member_path(path, "empty.txt")) == b""
    assert read_member(member_path(streamed, "three.txt")) == b"three" * 20


def test_damaged_member_is_named(ade, tmp_path):
    path = tmp_path / "ADEChallengeData2016.zip"
    path.write_bytes((ade[1] / path.name).read_bytes())
    member = "ADEChallengeData2016/images/training/ADE_train_00000002.jpg"
    data = load_dataset("ade20k", tmp_path)
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo(member).header_offset
    content = bytearray(path.read_bytes())
    content[offset + 300] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"2016\.zip: {member}: cannot read .*member {member} is damaged"):
        data.read_sample(undecoded(data.train)[1])


def test_label_out_of_range_names_the_member(tmp_path):
    folder = write_ade20k(tmp_path)
    Image.fromarray(np.full((21, 29), 151, np.uint8)).save(
        folder / "annotations" / "training" / "ADE_train_00000002.png"
    )
    (tmp_path / "zip").mkdir()
    zip_folder(folder, tmp_path / "zip" / "ADEChallengeData2016.zip")
    with pytest.raises(ValueError, match=r"annotation /.*2016\.zip: ADE.*/ADE_train_00000002\.png: 609 pixels"):
        load_dataset("ade20k", tmp_path / "zip")


@pytest.mark.parametrize("damage", ["cut", "no zip"])
def test_damaged_zip_file(ade, tmp_path, damage):
    path = tmp_path / "ADEChallengeData2016.zip"
    path.write_bytes((ade[1] / path.name).read_bytes()[:-5000] if damage == "cut" else b"<html>")
    with pytest.raises(ValueError, match=r"ADEChallengeData2016\.zip: cannot read the zip file"):
        load_dataset("ade20k", tmp_path)


def test_unusual_compression_and_absent_members(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.txt", "a" * 100)
    with pytest.raises(ValueError, match=r"a\.zip: member a\.txt is encrypted or not compressed by deflate"):
        read_member(member_path(tmp_path / "a.zip", "a.txt"))
    with pytest.raises(ValueError, match=r"a\.zip: no member b\.txt"):
        read_member(member_path(tmp_path / "a.zip", "b.txt"))


def test_hidden_files_of_foreign_systems_are_left_out(ade, tmp_path):
    path = tmp_path / "ADEChallengeData2016.zip"
    path.write_bytes((ade[1] / path.name).read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/ADEChallengeData2016/images/training/._ADE_train_00000001.jpg", b"x")
        archive.writestr("ADEChallengeData2016/images/training/._ADE_train_00000001.jpg", b"x")
    with pytest.warns(UserWarning, match=r"left out 1 hidden file \(.*images/training/\._ADE_train_00000001\.jpg\)"):
        assert len(load_dataset("ade20k", tmp_path).train) == 5


def test_member_paths():
    assert is_member_path("zip://a/b.png::/c/d.zip") and archives.member_path("/c/d.zip", "a") == "zip://a::/c/d.zip"
    for other in ("zip://a.png::https://host/d.zip", "/c/d.png", "hf://a", None, json.loads("{}")):
        assert not is_member_path(other)


# Damaged and hostile ones


def zipped(path, contents, **options):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return path


def patched(path, offset_of, layout, value, signature=b"PK\x01\x02"):
    """Overwrite a field of the first entry of the list of members."""
    data = bytearray(path.read_bytes())
    struct.pack_into(layout, data, data.index(signature) + offset_of, value)
    path.write_bytes(data)
    archives._members.cache_clear()
    return path


def test_members_that_unpack_to_more_than_they_say(tmp_path):
    """Ten megabytes of zeros that are said to be 100 bytes: not unpacked."""
    path = patched(zipped(tmp_path / "a.zip", {"a.png": bytes(10 << 20)}), 24, "<I", 100)
    with pytest.raises(ValueError, match=r"a\.zip: member a\.png is damaged: it unpacks to another size than the 100"):
        read_member(member_path(path, "a.png"))
    path = patched(path, 24, "<I", 20 << 20)
    with pytest.raises(ValueError, match="unpacks to another size than the 20,971,520"):
        read_member(member_path(path, "a.png"))


def test_members_of_gigabytes_are_refused_unread(tmp_path):
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        info = zipfile.ZipInfo("b.png")
        archive.writestr(info, b"x")
        archive.filelist[0].file_size = 5 << 30  # written as zip64
    with pytest.raises(ValueError, match=r"b\.zip: member b\.png has 5,368,709,120 bytes; 4,294,967,296 is the most"):
        read_member(member_path(tmp_path / "b.zip", "b.png"))


def test_lists_that_point_beyond_the_end(tmp_path):
    path = zipped(tmp_path / "a.zip", {"a.png": b"x" * 50, "b.png": b"y"})
    patched(path, 42, "<I", 90_000)
    with pytest.raises(ValueError, match=r"a\.png is damaged: the zip file's list points to a place beyond its end"):
        read_member(member_path(path, "a.png"))
    patched(path, 42, "<I", 3)
    with pytest.raises(ValueError, match="or without a member"):
        read_member(member_path(path, "a.png"))
    path = patched(zipped(tmp_path / "c.zip", {"a.png": b"x"}), 20, "<I", 50_000)
    with pytest.raises(ValueError, match="ends in the middle of it"):
        read_member(member_path(path, "a.png"))
    assert read_member(member_path(tmp_path / "a.zip", "b.png")) == b"y"


def test_odd_member_names_are_only_read(tmp_path, monkeypatch):
    inside = tmp_path / "in"
    inside.mkdir()
    monkeypatch.chdir(inside)
    names = {"../../up.png": b"1", "/etc/absolute.png": b"2", "a\\b.png": b"3", "twice.png": b"4"}
    path = zipped(inside / "a.zip", names)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("twice.png", b"5")
    for name, data in (names | {"twice.png": b"5"}).items():  # of two, the last, as unpacking leaves it
        assert read_member(member_path(path, name)) == data
    assert [p.name for p in tmp_path.rglob("*")] == ["in", "a.zip"]
    with pytest.raises(ValueError, match=r"a\.zip: member c::d\.png: names with '::' in zip files cannot be read"):
        member_path(path, "c::d.png")


def test_damaged_lists_end_in_words(tmp_path):
    """Every byte of the list of members overwritten in turn."""
    content = zipped(tmp_path / "a.zip", {"a.png": b"x" * 20, "b/c.png": b"y" * 30}).read_bytes()
    path = tmp_path / "b.zip"
    for position in range(content.index(b"PK\x01\x02"), len(content)):
        for byte in (0, 0xFF):
            path.write_bytes(content[:position] + bytes([byte]) + content[position + 1 :])
            archives._members.cache_clear()
            try:
                for name in member_names(path):
                    read_member(member_path(path, name))
            except ValueError as error:
                assert "b.zip" in str(error)
