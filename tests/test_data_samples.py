# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Decoding of pictures and annotations: every file format a user may have, and every error with the file's name."""

import io
import pickle
import warnings

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_segformer.data import AnnotationFormat, SegmentationData, read_sample, undecoded
from hf_segformer.data.segmentation_data import build_dataset

PALETTE = ((128, 0, 0), (0, 128, 0), (0, 0, 128))
THREE = AnnotationFormat(3, palette=PALETTE)
HEIGHT, WIDTH = 7, 11


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def save(path, picture, **options):
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path, **options)
    return str(path)


def row(tmp_path, image=None, annotation=None, **options):
    """Write a pair of files and return their row; arrays or PIL pictures, zeros by default."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8) if image is None else image
    annotation = np.zeros((HEIGHT, WIDTH), np.uint8) if annotation is None else annotation
    return {
        "image": save(tmp_path / "photo.png", image, **options),
        "annotation": save(tmp_path / "truth.png", annotation),
        "file_name": "photo.png",
    }


def png_bytes(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


# Pictures


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "CMYK"])
def test_image_modes_become_rgb(tmp_path, rng, mode):
    colors = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    picture = Image.fromarray(colors).convert(mode)
    path = tmp_path / ("photo.tif" if mode == "CMYK" else "photo.png")
    example = row(tmp_path) | {"image": save(path, picture)}
    image, _ = read_sample(example, THREE)
    assert image.dtype == np.uint8 and image.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(image, np.asarray(picture.convert("RGB")))


def test_sixteen_bit_grey_picture_is_scaled_not_clipped(tmp_path, rng):
    values = rng.integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16)
    values[0, :3] = 0, 65535, 32768
    image, _ = read_sample(row(tmp_path, values), THREE)
    expected = np.round(values / 65535 * 255).astype(np.uint8)
    for channel in range(3):
        np.testing.assert_array_equal(image[..., channel], expected)


def test_floating_point_picture_is_refused(tmp_path):
    example = row(tmp_path) | {"image": save(tmp_path / "depth.tif", np.ones((HEIGHT, WIDTH), np.float32))}
    with pytest.raises(ValueError, match=r"depth\.tif: pictures of floating point numbers"):
        read_sample(example, THREE)


def oriented_jpeg(path, upright, orientation):
    """Write the JPEG that a camera held in `orientation` would have written of the upright picture."""
    undo = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(undo)
    stored.save(path, exif=exif, quality=100, subsampling=0)
    return str(path)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_exif_orientation_is_honoured(tmp_path, orientation):
    colors = np.zeros((16, 24, 3), np.uint8)
    colors[:8, :8] = 250, 20, 20
    path = oriented_jpeg(tmp_path / "photo.jpg", Image.fromarray(colors), orientation)
    example = {"image": path, "annotation": save(tmp_path / "truth.png", np.zeros((16, 24), np.uint8))}
    image, _ = read_sample(example, THREE)
    assert image.shape == (16, 24, 3)
    assert np.abs(image.astype(int) - colors).max() < 40
    decoded = build_dataset([path], [example["annotation"]], ["photo.jpg"])[
        0
    ]  # datasets turns it, not turned twice here
    np.testing.assert_array_equal(read_sample(decoded, THREE)[0], image)


def test_annotation_of_the_unturned_picture_is_explained(tmp_path):
    path = oriented_jpeg(tmp_path / "photo.jpg", Image.new("RGB", (24, 16)), 6)
    example = {"image": path, "annotation": save(tmp_path / "truth.png", np.zeros((24, 16), np.uint8))}
    with pytest.raises(ValueError, match=r"truth\.png: annotation is 16x24 .*photo\.jpg is 24x16; .*EXIF"):
        read_sample(example, THREE)


# Annotations


def label_sources(ids):
    palette_picture = Image.fromarray(ids).convert("P")
    palette_picture.putpalette([value for color in PALETTE for value in color])
    return {
        "grey 8 bit": ids,
        "grey 16 bit": ids.astype(np.uint16),
        "palette": palette_picture,
        "grey saved as RGB": np.repeat(ids[..., None], 3, axis=2),
        "grey saved as RGBA": np.dstack([ids, ids, ids, np.full_like(ids, 255)]),
        "grey with alpha": Image.merge("LA", [Image.fromarray(ids), Image.new("L", ids.shape[::-1], 255)]),
    }


@pytest.mark.parametrize("kind", label_sources(np.zeros((2, 2), np.uint8)))
def test_label_ids(tmp_path, rng, kind):
    ids = rng.choice([0, 1, 2, 255], (HEIGHT, WIDTH)).astype(np.uint8)
    if kind == "palette":
        ids[ids == 255] = 2
    _, label = read_sample(row(tmp_path, annotation=label_sources(ids)[kind]), THREE)
    assert label.dtype == (np.int32 if "16" in kind else np.uint8)
    np.testing.assert_array_equal(label, ids)


def test_one_bit_annotation(tmp_path, rng):
    ids = rng.integers(0, 2, (HEIGHT, WIDTH)).astype(bool)
    _, label = read_sample(row(tmp_path, annotation=ids), THREE)
    np.testing.assert_array_equal(label, ids)


def test_sixteen_bit_ids_stay_ids(tmp_path, rng):
    ids = rng.integers(0, 3000, (HEIGHT, WIDTH)).astype(np.uint16)
    ids[0, 0] = 65535
    _, label = read_sample(row(tmp_path, annotation=ids), AnnotationFormat(3000, ignore_index=65535))
    np.testing.assert_array_equal(label, ids)


@pytest.mark.parametrize("one", [1, 255])
def test_binary_masks(tmp_path, rng, one):
    truth = rng.integers(0, 2, (HEIGHT, WIDTH)).astype(np.uint8)
    _, label = read_sample(row(tmp_path, annotation=truth * np.uint8(one)), AnnotationFormat(2, "binary"))
    np.testing.assert_array_equal(label, truth)


@pytest.mark.parametrize("values", [(0, 254), (0, 1, 255)])
def test_binary_mask_with_other_values(tmp_path, values):
    ids = np.resize(np.array(values, np.uint8), (HEIGHT, WIDTH))
    with pytest.raises(
        ValueError, match=r"truth\.png: a binary mask holds 0 and one of 1 or 255, got the values \[0, "
    ):
        read_sample(row(tmp_path, annotation=ids), AnnotationFormat(2, "binary"))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_rgb_colour_masks(tmp_path, rng, mode):
    ids = rng.choice([0, 1, 2, 255], (HEIGHT, WIDTH))
    colors = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for index, color in enumerate(PALETTE):
        colors[ids == index] = color
    picture = Image.fromarray(colors).convert(mode, palette=Image.Palette.ADAPTIVE)
    by_color = AnnotationFormat(3, "rgb", palette=PALETTE, ignore_color=(0, 0, 0))
    _, label = read_sample(row(tmp_path, annotation=picture), by_color)
    np.testing.assert_array_equal(label, ids)


def test_rgb_mask_with_ids_beyond_8_bit(tmp_path):
    palette = tuple((i // 256, i % 256, 7) for i in range(300))
    colors = np.array([palette[299], palette[0], palette[255]], np.uint8)[None]
    example = row(tmp_path, np.zeros((1, 3, 3), np.uint8), colors)
    _, label = read_sample(example, AnnotationFormat(300, "rgb", ignore_index=-1, palette=palette))
    assert label.tolist() == [[299, 0, 255]]


def test_unknown_colour_names_file_colour_and_position(tmp_path):
    colors = np.full((HEIGHT, WIDTH, 3), PALETTE[1], np.uint8)
    colors[4, 9] = 1, 2, 3
    colors[5, 2] = 1, 2, 3
    with pytest.raises(ValueError, match=r"truth\.png: colour \(1, 2, 3\) at \(x=9, y=4\) .*\(2 such pixels\)"):
        read_sample(row(tmp_path, annotation=colors), AnnotationFormat(3, "rgb", palette=PALETTE))


def test_colour_annotation_where_ids_are_expected(tmp_path):
    colors = np.full((HEIGHT, WIDTH, 3), PALETTE[1], np.uint8)
    with pytest.raises(ValueError, match=r"truth\.png: label ids expected, but this is a colour picture.*'rgb'"):
        read_sample(row(tmp_path, annotation=colors), THREE)


def test_annotation_mode_without_ids(tmp_path):
    example = row(tmp_path) | {"annotation": save(tmp_path / "truth.tif", np.ones((HEIGHT, WIDTH), np.float32))}
    with pytest.raises(ValueError, match=r"truth\.tif: annotations of mode 'F'"):
        read_sample(example, THREE)


@pytest.mark.parametrize(
    ("ids", "num_classes", "ignore_index", "message"),
    [
        (
            [0, 1, 2, 3],
            3,
            255,
            r"1 pixels have labels outside 0\.\.2 \(K=3 classes, ignore_index=255\): 3; ids seem to start at 1",
        ),
        ([0, 255, 0, 255], 2, 254, r"2 pixels .* 255; this looks like a 0/255 mask: use mask_format 'binary'"),
        ([0, 1, 2, 255], 3, 254, r"1 pixels .* 255; 255 usually marks ignored pixels"),
        ([0, 26001, 26002, 1], 3, 255, r"2 pixels .* 26001, 26002; such numbers are instance ids"),
        ([0, 7, 9, 1], 3, 255, r"2 pixels .* 7, 9; the class names file may lack classes"),
        (list(range(200)), 3, 255, r"197 pixels .* 12, \.\.\.; so many different values come from JPEG"),
    ],
)
def test_labels_out_of_range(tmp_path, ids, num_classes, ignore_index, message):
    ids = np.array(ids, np.uint16)[None]
    example = row(tmp_path, np.zeros((*ids.shape, 3), np.uint8), ids)
    with pytest.raises(ValueError, match=r"truth\.png: " + message):
        read_sample(example, AnnotationFormat(num_classes, ignore_index=ignore_index))


def test_size_mismatch(tmp_path):
    example = row(tmp_path, annotation=np.zeros((HEIGHT, WIDTH + 1), np.uint8))
    with pytest.raises(ValueError, match=r"truth\.png: annotation is 12x7 .*photo\.png is 11x7$"):
        read_sample(example, THREE)


@pytest.mark.parametrize("column", ["image", "annotation"])
@pytest.mark.parametrize("damage", ["truncated", "no picture", "empty", "absent"])
def test_unreadable_files_are_named(tmp_path, rng, column, damage):
    example = row(
        tmp_path,
        rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8),
        rng.integers(0, 3, (HEIGHT, WIDTH), dtype=np.uint8),
    )
    path = tmp_path / ("photo.png" if column == "image" else "truth.png")
    content = path.read_bytes()
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(
            {"truncated": content[: len(content) * 2 // 3], "no picture": b"<html>", "empty": b""}[damage]
        )
    with pytest.raises(ValueError, match=rf"{path.name}: cannot read the picture"):
        read_sample(example, THREE)


def test_truncated_jpeg_is_named(tmp_path, rng):
    path = tmp_path / "photo.jpg"
    save(path, rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:-900])
    example = {"image": str(path), "annotation": save(tmp_path / "truth.png", np.zeros((64, 64), np.uint8))}
    with pytest.raises(ValueError, match=r"photo\.jpg: cannot read the picture.*truncated"):
        read_sample(example, THREE)


def test_embedded_pictures_are_named_by_their_row(rng):
    broken = {"bytes": png_bytes(rng.integers(0, 256, (9, 9), dtype=np.uint8))[:60], "path": None}
    with pytest.raises(ValueError, match=r"^picture scene_7\.png: cannot read"):
        read_sample({"image": broken, "annotation": broken, "file_name": "scene_7.png"}, THREE)


# The data set


def make_data(**changes):
    rng = np.random.default_rng(0)
    pictures = [{"bytes": png_bytes(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)), "path": None} for _ in range(3)]
    labels = [{"bytes": png_bytes(rng.integers(0, 3, (5, 6), dtype=np.uint8)), "path": None} for _ in range(3)]
    rows = build_dataset(pictures, labels, ["a", "b", "c"])
    fields = {"train": rows, "validation": rows, "class_names": ("x", "y", "z"), "palette": PALETTE, "name": "made"}
    return SegmentationData(**fields | changes)


def test_columns_are_lazy_pictures_and_paths_are_kept(tmp_path):
    example = row(tmp_path)
    rows = build_dataset([example["image"]], [example["annotation"]], ["photo.png"])
    assert rows.column_names == ["image", "annotation", "file_name"]
    assert isinstance(rows.features["image"], datasets.Image) and isinstance(
        rows.features["annotation"], datasets.Image
    )
    assert undecoded(rows)[0]["annotation"] == {"bytes": None, "path": example["annotation"]}
    assert isinstance(rows[0]["image"], Image.Image)
    assert rows.cache_files == []


@pytest.mark.parametrize("decode", [True, False])
def test_data_reads_decoded_and_undecoded_rows(decode):
    data = make_data()
    rows = data.train if decode else undecoded(data.train)
    image, label = data.read_sample(rows[1])
    expected = np.asarray(data.train[1]["image"]), np.asarray(data.train[1]["annotation"])
    np.testing.assert_array_equal(image, expected[0])
    np.testing.assert_array_equal(label, expected[1])


def test_data_survives_pickling():
    data = make_data()
    copy = pickle.loads(pickle.dumps(data))
    assert copy.class_names == data.class_names and copy.annotation_format == data.annotation_format
    np.testing.assert_array_equal(copy.read_sample(copy.train[2])[0], data.read_sample(data.train[2])[0])


def test_ignored_class_is_announced():
    with pytest.warns(UserWarning, match="ignore_index 1 is also the id of class 'y'"):
        make_data(ignore_index=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_data(ignore_index=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, "colour"), r"mask_format must be one of ids, binary, rgb, got 'colour'"),
        ((3, "binary"), r"mask_format 'binary' needs exactly 2 classes, got 3"),
        ((3, "rgb", 255, PALETTE[:2]), r"'rgb' needs a palette .* got 2 colours for 3 classes"),
        (
            (3, "rgb", 255, PALETTE[:2] + PALETTE[:1]),
            r"'rgb' needs a palette of different colours, repeated: \[\(128, 0, 0\)\]",
        ),
    ],
)
def test_impossible_annotation_formats(arguments, message):
    with pytest.raises(ValueError, match=message):
        AnnotationFormat(*arguments)
