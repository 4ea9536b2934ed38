# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Whatever a folder can hold is read, refused by name or counted; drives that fail for a moment are asked again."""

import errno
import io
import os
import pickle
import signal
import socket
import struct
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_segformer.commands.predict import Pictures, find_images
from hf_segformer.data import StorageError, check_dataset, files, load_dataset, undecoded
from hf_segformer.data.archives import member_names, member_path, read_member
from hf_segformer.data.files import read_file, shown
from hf_segformer.data.segmentation_data import open_picture
from published_data import write_ade20k


@pytest.fixture(autouse=True)
def no_hang():
    """A read that waits for ever ends the test instead."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("waited for ever"))
    signal.alarm(60)
    yield
    signal.alarm(0)


@pytest.fixture
def root(tmp_path):
    """A data set of 6 pictures, without splits."""
    root = tmp_path / "set"
    for kind in ("images", "annotations"):
        (root / kind).mkdir(parents=True)
    for index in range(6):
        picture(root / "images" / f"p{index}.png")
        Image.fromarray(np.full((6, 8), index % 2, np.uint8)).save(root / "annotations" / f"p{index}.png")
    (root / "classes.txt").write_text("a\nb")
    return root


def picture(path, size=(8, 6)):
    Image.new("RGB", size, (9, 8, 7)).save(path)
    return path


def unix_socket(path, monkeypatch):
    monkeypatch.chdir(path.parent)  # the path of a socket may have 107 bytes
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    return path


def circle(path):
    path.symlink_to(path.name)


def to_nothing(path):
    path.symlink_to("gone/away.png")


def huge(path):
    path.touch()
    os.truncate(path, 5 << 30)  # takes no space


ODD = {
    "pipe": (os.mkfifo, "it is a pipe, no file"),
    "socket": (None, "it is a socket, no file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "it is a device, no file"),
    "folder": (Path.mkdir, "it is a folder, no file"),
    "linked folder": (lambda path: path.symlink_to("/tmp"), "it is a folder, no file"),
    "circle": (circle, "its links lead in a circle"),
    "broken link": (to_nothing, r"it is a link to .*gone/away\.png, which is missing"),
    "missing": (lambda path: None, "it is missing"),
    "empty": (Path.touch, r"it is empty \(0 bytes\)"),
    "text": (lambda path: path.write_text("hello"), "it is damaged, or no picture of a known format"),
    "huge": (huge, "it has 5,368,709,120 bytes, of one file 4,294,967,296 are the most"),
}


def make(kind, path, monkeypatch):
    if kind == "socket":
        unix_socket(path, monkeypatch)
    else:
        ODD[kind][0](path)
    return path


@pytest.mark.parametrize("kind", ODD)
def test_odd_files_are_refused_in_words(tmp_path, kind, monkeypatch):
    path = make(kind, tmp_path / "x.png", monkeypatch)
    with pytest.raises(ValueError, match=rf"^train picture x: cannot read the picture: {ODD[kind][1]}"):
        open_picture(str(path), "train picture x")


@pytest.mark.parametrize("column", ["images", "annotations"])
@pytest.mark.parametrize("kind", ["broken link", "circle", "device", "linked folder", "empty", "huge"])
def test_odd_files_in_a_folder_are_found_at_the_door(root, kind, column, monkeypatch):
    """Named like pictures, they are taken for damaged ones, of which the file, its kind and its split are told."""
    (root / column / "p3.png").unlink()
    make(kind, root / column / "p3.png", monkeypatch)
    monkeypatch.setattr("hf_segformer.data.folder.probe_evenly", lambda items, probe: None)
    data = load_dataset("folder", root)
    what = "picture" if column == "images" else "annotation"
    split = "train" if "p3.png" in data.train["file_name"][:] else "validation"
    monkeypatch.chdir(root.parent)
    with pytest.raises(ValueError, match=rf"{split} {what} set/{column}/p3\.png: cannot read the picture: "):
        check_dataset(data)


def test_what_is_left_out_is_counted_and_named(root, monkeypatch):
    images = root / "images"
    os.mkfifo(images / "pipe.png")
    unix_socket(images / "s.png", monkeypatch)
    (images / "folder.png").mkdir()
    (images / "berlin" / "deep").mkdir(parents=True)
    picture(images / "berlin" / "one.PNG")
    picture(images / "berlin" / "deep" / "two.jpg")
    for name in ("Thumbs.db", "notes.txt", ".DS_Store", ".p0.png"):
        (images / name).write_bytes(b"x")
    (images / "__MACOSX").mkdir()
    (images / "loop").symlink_to(".")
    monkeypatch.chdir(root)
    with pytest.warns(UserWarning, match="left out") as caught:
        data = load_dataset("folder", root)
    assert len(data.train) + len(data.validation) == 6
    (message,) = [str(warning.message) for warning in caught]
    assert message.startswith("images: left out ")
    for part in (
        "2 hidden files (such as images/.DS_Store)",
        "3 files with another ending (such as images/Thumbs.db)",
        "2 files in a sub-folder (such as images/berlin/one.PNG)",
        "2 folders (such as images/__MACOSX)",
        "1 pipe (images/pipe.png)",
        "1 socket (images/s.png)",
    ):
        assert part in message


def test_all_pictures_in_sub_folders(root):
    (root / "images").rename(root / "berlin")
    (root / "images").mkdir()
    (root / "berlin").rename(root / "images" / "berlin")
    with pytest.raises(ValueError, match=r"no pictures here .*: 6 files in a sub-folder \(such as .*berlin/p0\.png\)"):
        load_dataset("folder", root)


def test_capitals_and_links_to_another_disk_are_fine(root, tmp_path):
    (root / "images" / "p1.png").rename(root / "images" / "p1.PNG")
    (root / "images" / "p2.png").rename(tmp_path / "elsewhere.png")
    (root / "images" / "p2.png").symlink_to(tmp_path / "elsewhere.png")
    (root / "annotations").rename(tmp_path / "labels")
    (root / "annotations").symlink_to(tmp_path / "labels")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = check_dataset(load_dataset("folder", root))
    assert sum(report.checked.values()) == 6


ODD_NAME = os.fsdecode(b"caf\xe9.png")


def test_names_that_are_no_text_are_refused_by_name(root, capsys):
    for kind in ("images", "annotations"):
        (root / kind / "p2.png").rename(root / kind / ODD_NAME)
    with pytest.raises(ValueError, match=r"images/caf\\xe9\.png: the name is not valid UTF-8; rename") as caught:
        load_dataset("folder", root)
    print(caught.value)  # no "surrogates not allowed"
    assert "caf\\xe9" in capsys.readouterr().out


def test_a_data_root_that_is_no_text(root):
    odd = root.with_name(os.fsdecode(b"d\xff"))
    root.rename(odd)
    with pytest.raises(ValueError, match=r"/d\\xff/images/p0\.png: the name is not valid UTF-8"):
        load_dataset("folder", odd)


def test_control_characters_do_not_reach_the_terminal(root):
    (root / "images" / "p\x1b[2Jx\n.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"images/p\\x1b\[2Jx\\n\.png: no annotation"):
        load_dataset("folder", root)


def test_published_layouts_count_and_refuse_too(tmp_path, monkeypatch):
    folder = write_ade20k(tmp_path)
    images, annotations = folder / "images" / "training", folder / "annotations" / "training"
    os.mkfifo(images / "pipe.jpg")
    (images / "folder.jpg").mkdir()
    (images / "notes.txt").write_text("x")
    (images / "ADE_train_00000001.jpg").rename(images / "ADE_train_00000001.JPG")
    unix_socket(annotations / "s.png", monkeypatch)
    monkeypatch.chdir(folder)
    with pytest.warns(UserWarning, match="left out") as caught:
        data = load_dataset("ade20k", ".")
    assert len(data.train) == 5
    message = next(str(w.message) for w in caught if "left out" in str(w.message))
    for part in (
        "1 pipe (images/training/pipe.jpg)",
        "1 folder (images/training/folder.jpg)",
        "1 socket (annotations/training/s.png)",
        "(images/training/notes",
    ):
        assert part in message
    picture(images / "ADE_train_00000001.jpg")
    with (
        pytest.raises(ValueError, match=r"training/ADE_train_00000001\.JPG and .*0001\.jpg: two files with the same"),
        warnings.catch_warnings(),
    ):
        load_dataset("ade20k", ".")
    (images / "ADE_train_00000001.jpg").unlink()
    for place, suffix in ((images, "jpg"), (annotations, "png")):
        (place / f"ADE_train_00000002.{suffix}").rename(place / os.fsdecode(b"\xfe." + suffix.encode()))
    with pytest.raises(ValueError, match=r"\\xfe\.jpg: the name is not valid UTF-8"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_dataset("ade20k", ".")


def test_links_in_circles_among_the_cities(tmp_path):
    from published_data import write_cityscapes

    root = write_cityscapes(tmp_path)
    for folder in ("leftImg8bit/train", "gtFine/train"):
        (root / folder / "loop").symlink_to("loop")
    with pytest.warns(UserWarning, match=r"left out 1 file with another name \(.*leftImg8bit/train/loop\)"):
        assert len(load_dataset("cityscapes", root).train)


def test_pictures_up_to_the_limit_load_and_larger_ones_are_refused(tmp_path, monkeypatch):
    wide = picture(tmp_path / "satellite.png", (1000, 170))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90_000)  # the real ones take a second each
    assert np.asarray(open_picture(str(wide), "x")).shape == (170, 1000, 3)
    over = picture(tmp_path / "over.png", (1000, 181))
    with pytest.raises(ValueError, match="x: cannot read the picture: it has too many pixels, 180,000 are the most"):
        open_picture(str(over), "x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="too many pixels"):
            open_picture(str(wide), "x")


def test_damaged_exif_is_no_crash(tmp_path):
    """Fields of the wrong kind, which Pillow notices only when it turns the picture."""
    image = Image.new("RGB", (8, 6))
    exif = image.getexif()
    exif[0x0112], exif[0x0100] = 6, 8
    data = io.BytesIO()
    image.save(data, "JPEG", exif=exif)
    content = data.getvalue()
    entry = (
        content.index(struct.pack("<HHI", 0x0100, 4, 1))
        if b"II*" in content
        else content.index(struct.pack(">HHI", 0x0100, 4, 1))
    )
    for kind in range(13):
        damaged = bytearray(content)
        damaged[entry + 2 : entry + 4] = struct.pack(">H" if b"MM" in content else "<H", kind)
        try:
            open_picture({"bytes": bytes(damaged), "path": None}, "photo")
        except ValueError as error:
            assert str(error).startswith("photo: cannot read the picture: ")


# Names


def test_files_are_named_so_that_they_can_be_opened(root, monkeypatch):
    data = load_dataset("folder", root)
    monkeypatch.chdir(root)
    assert shown(root / "images" / "p0.png") == "images/p0.png"
    assert shown(root.parent / "other.png") == str(root.parent / "other.png")
    assert shown(member_path(root / "a.zip", "b/c.png")) == "a.zip: b/c.png"
    Image.fromarray(np.full((6, 8), 9, np.uint8)).save(data.validation[0]["annotation"].filename)
    with pytest.raises(ValueError, match=r"validation annotation (annotations/p\d\.png): 48 pixels") as caught:
        check_dataset(data)
    name = str(caught.value).split("validation annotation ")[1].split(":")[0]
    assert Image.open(name).size == (8, 6)


# Reads that may pass


@pytest.fixture
def short_waits(monkeypatch):
    monkeypatch.setattr(files, "RETRY_WAITS", (0.0, 0.001))


def test_a_read_error_of_the_system_is_never_a_bad_picture(tmp_path, short_waits):
    """Reading this file at its beginning gives EIO, as a drive does that fails."""
    (tmp_path / "photo.png").symlink_to("/proc/self/mem")
    with pytest.raises(
        StorageError, match=r"photo\.png: cannot be read now, after 3 tries in 0 s: .*may pass"
    ) as caught:
        open_picture(str(tmp_path / "photo.png"), "train picture photo.png")
    assert isinstance(caught.value, OSError) and not isinstance(caught.value, ValueError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def failing(monkeypatch, name, number, times, only=""):
    """Let a function of `os` fail a number of times for paths with a certain part."""
    real, left = getattr(os, name), [times]

    def fails(path, *arguments, **options):
        if only in os.fsdecode(path) and left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number), path)
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, name, fails)
    return left


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.EHOSTDOWN])
@pytest.mark.parametrize("call", ["open", "stat"])
def test_reads_are_repeated(tmp_path, monkeypatch, short_waits, number, call):
    path = picture(tmp_path / "photo.png")
    left = failing(monkeypatch, call, number, 2, "photo")
    assert open_picture(str(path), "x").size == (8, 6)
    assert left == [0]


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.ENAMETOOLONG])
def test_errors_of_the_file_are_not_repeated(tmp_path, monkeypatch, number):
    path = picture(tmp_path / "photo.png")
    left = failing(monkeypatch, "open", number, 5, "photo")
    with pytest.raises(ValueError, match="x: cannot read the picture: "):
        open_picture(str(path), "x")
    assert left == [4]


def test_waits_grow_and_end(monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    with pytest.raises(StorageError):
        read_file("/proc/self/mem")
    assert waits == sorted(waits) and 10 < sum(waits) < 120 and len(set(waits)) == len(waits)


def test_zip_files_on_a_drive_that_fails(tmp_path, monkeypatch, short_waits):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "text")
    left = failing(monkeypatch, "open", errno.EIO, 2, "a.zip")
    assert member_names(path) == ["a.txt"] and left == [0]
    failing(monkeypatch, "open", errno.ENOTCONN, 2, "a.zip")
    assert read_member(member_path(path, "a.txt")) == b"text"
    failing(monkeypatch, "open", errno.EBUSY, 9, "a.zip")
    with pytest.raises(StorageError, match=r"a\.zip: cannot be read now"):
        read_member(member_path(path, "a.txt"))


def test_folders_on_a_drive_that_fails(root, monkeypatch, short_waits):
    left = failing(monkeypatch, "scandir", errno.EIO, 2, "images")
    assert len(load_dataset("folder", root).train) and left == [0]
    failing(monkeypatch, "scandir", errno.EIO, 99, "images")
    with pytest.raises(StorageError, match="set/images: cannot be read now"):
        load_dataset("folder", root)
    failing(monkeypatch, "scandir", errno.EACCES, 99, "images")
    monkeypatch.setattr(files, "RETRY_WAITS", ())
    with pytest.raises((ValueError, StorageError)):
        load_dataset("folder", root)


def test_the_check_stops_at_a_drive_that_fails(root, short_waits):
    data = load_dataset("folder", root)
    path = undecoded(data.train)[0]["annotation"]["path"]
    os.unlink(path)
    os.symlink("/proc/self/mem", path)
    for mode in ("stop", "skip"):
        with pytest.raises(StorageError, match="cannot be read now"):
            check_dataset(data, on_bad_sample=mode)


# Zip files


@pytest.mark.parametrize("kind", ["pipe", "folder", "circle", "broken link", "device", "empty"])
def test_archives_that_are_none(tmp_path, kind, monkeypatch):
    path = make(kind, tmp_path / "ADEChallengeData2016.zip", monkeypatch)
    with pytest.raises(ValueError, match=r"2016\.zip: (cannot read the zip file|no such folder|no such file)"):
        member_names(path)
    with pytest.raises(ValueError, match=r"2016"):
        load_dataset("ade20k", path)


# Prediction


def test_prediction_finds_and_counts(tmp_path, monkeypatch, capsys):
    photos = tmp_path / "photos"
    (photos / "berlin").mkdir(parents=True)
    picture(photos / "a.PNG")
    picture(photos / "berlin" / ODD_NAME)
    picture(photos / ".hidden.png")
    (photos / "__MACOSX").mkdir()
    picture(photos / "__MACOSX" / "b.png")
    (photos / "folder.jpg").mkdir()
    picture(photos / "folder.jpg" / "c.jpg")
    os.mkfifo(photos / "pipe.png")
    circle(photos / "circle.png")
    (photos / "again").symlink_to(".")
    (photos / "notes.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    found = find_images(["photos"])
    assert list(found) == ["a", os.fsdecode(b"berlin/caf\xe9"), "circle", "folder.jpg/c"]
    message = capsys.readouterr().err
    for part in (
        "photos: left out ",
        "1 hidden file (photos/.hidden.png)",
        "1 hidden folder (photos/__MACOSX)",
        "1 link to a folder (photos/again)",
        "1 pipe (photos/pipe.png)",
        "1 file with another ending (photos/notes.txt)",
    ):
        assert part in message
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "empty" / "pipe.png")
    with pytest.raises(ValueError, match=r"no pictures in empty .*: 1 pipe \(empty/pipe\.png\)"):
        find_images(["empty"])


@pytest.mark.parametrize("kind", ["pipe", "circle", "socket", "device", "empty", "huge"])
def test_prediction_passes_over_odd_files(tmp_path, kind, monkeypatch):
    path = make(kind, tmp_path / "x.png", monkeypatch)
    name, message, inputs = Pictures(find_images([str(path)]), None, None)[0]
    assert name == "x" and inputs is None
    assert message.startswith(f"{shown(path)}: cannot read the picture: ")


def test_prediction_passes_over_a_drive_that_fails(tmp_path, short_waits):
    (tmp_path / "x.png").symlink_to("/proc/self/mem")
    _, message, inputs = Pictures({"x": tmp_path / "x.png"}, None, None)[0]
    assert inputs is None and "x.png: cannot be read now" in message
