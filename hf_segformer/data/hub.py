# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Any data set of the Hugging Face Hub, and local parquet files, through `datasets.load_dataset`."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..hub_errors import explained, hub_file
from . import ade20k, cityscapes, coco_stuff
from .archives import is_member_path
from .classes import CLASS_FILES, ClassTable, find_class_table, make_class_table, read_class_table
from .file_tree import PROBES
from .files import printable, row_name_fault, shown
from .folder import detect_mask_format
from .hub_splits import LazyColumn, deal_rows, generated_name
from .labels import AnnotationFormat
from .segmentation_data import MissingSplit, SegmentationData, undecoded
from .splits import SplitOptions

if TYPE_CHECKING:
    import datasets

ANNOTATION_COLUMNS = ("annotation", "label", "mask", "segmentation_mask", "semantic_mask", "segmentation")
PUBLISHED_CLASSES = {"ade20k": ade20k, "cityscapes": cityscapes, "coco-stuff": coco_stuff}
VALIDATION_SPLITS = ("validation", "val", "valid", "dev", "test")


class Places(NamedTuple):
    """Where the pictures of a data set may lie: folders, with links resolved, and how addresses may begin."""

    folders: tuple[str, ...]
    addresses: tuple[str, ...]


def load_hub(
    path: str | Path,
    image_column: str = "image",
    annotation_column: str | None = None,
    class_names: Sequence[str] | Mapping[Any, str] | str | Path | None = None,
    mask_format: str = "auto",
    ignore_index: int | None = None,
    config_name: str | None = None,
    revision: str | None = None,
    train_split: str = "train",
    validation_split: str | None = None,
    validation_fraction: float = 0.1,
    cache_dir: str | Path | None = None,
    thin_classes: Iterable[str] = (),
    reduce_zero_label: bool = False,
    streaming: bool = False,
    allow_outside_files: bool = False,
    group_by: str | None = None,
    folds: int = 0,
    fold: int | None = None,
    split_seed: int = 0,
) -> SegmentationData:
    """Load a data set by its Hub id, or parquet files from disk.

    Args:
        path: `owner/name` on the Hub, a parquet file, or a folder whose parquet files are named after their splits
            (`train-00000-of-00002.parquet`, `validation.parquet`, also under `data/`).
        image_column: Column of pictures.
        annotation_column: Column of annotation pictures; None takes the only one present of `annotation`, `label`,
            `mask`, `segmentation_mask`, `semantic_mask`, `segmentation`.
        class_names: Names in the order of their ids, a mapping from id to name, a file as in `read_class_table`, or
            names with commas between them, or `"ade20k"`, `"cityscapes"` or `"coco-stuff"` for the names and colours
            of these data sets. None looks for
            `classes.json`, `classes.txt` or `id2label.json` beside the parquet files or in the Hub repository, then
            for the one column that is a list of `ClassLabel`.
        mask_format: As in `load_folder`.
        ignore_index: Label of pixels that belong to no class; None takes the class file's, else 255.
        config_name: Configuration of the data set, where it has several.
        revision: Branch, tag or commit on the Hub.
        train_split: Name of the training split.
        validation_split: Name of the validation split; None takes the first present of `validation`, `val`, `valid`,
            `dev`, `test`, and without any holds out `validation_fraction` of the training split, evenly spaced.
        validation_fraction: In (0, 1).
        cache_dir: Where `datasets` keeps its files; None for its usual place.
        thin_classes: Names of classes to report apart.
        reduce_zero_label: Whether 0 means "no class" and k class k-1; needed for ADE20K (SceneParse150) with its
            annotations as published, together with 150 class names. See `AnnotationFormat`.
        streaming: Fetch rows as they are used instead of all beforehand. The splits are `datasets.IterableDataset`s
            with pictures as `{"bytes", "path"}` (see `stream_split`), nothing is held out for validation, and
            `file_name` is the split's name where pictures have none. The scripts for training and evaluation need
            `streaming=False`.
        allow_outside_files: Rows may hold a picture's path instead of the picture. Such a path must lie, with links
            resolved, in the folder of the parquet files, or for a data set of the Hub in its repository or the caches
            that it is downloaded to: a table from elsewhere could otherwise make this program read, and publish
            predictions over, any picture of this machine. True allows all paths and addresses.
        group_by: As in `SplitOptions`, on the names of files; every row must have one.
        folds: As there; all splits but those for tests are dealt into parts.
        fold: As there.
        split_seed: Seed of that choice.

    Raises:
        ValueError: A split, column or the class names cannot be found, and the message lists what there is; or a row
            names a picture outside the data set, or has a file name that cannot be one.
    """
    splits = _load_splits(path, config_name, revision, cache_dir, streaming)
    if train_split not in splits:
        raise ValueError(f"{path}: no split {train_split!r}; there are {', '.join(splits)}")
    rows = splits[train_split]
    annotation_column = _choose_annotation_column(rows, image_column, annotation_column, path)
    classes = _class_table(path, class_names, rows, revision)
    if ignore_index is None:
        ignore_index = classes.ignore_index
    columns = (image_column, annotation_column)
    places = None if allow_outside_files else _own_places(path, cache_dir)
    standard = functools.partial(_standard_columns, columns=columns, path=path, places=places)
    clause = ""
    if group_by is not None or folds or fold is not None:
        options = SplitOptions(train_split, validation_split, validation_fraction, group_by, folds, fold, split_seed)
        train, validation, clause = deal_rows(splits, standard, options, path)
    else:
        train, validation = _train_and_validation(
            splits, train_split, validation_split, validation_fraction, standard, path
        )
    if mask_format == "auto":
        first = undecoded(train)
        annotations: Sequence[Any] = (
            [row["annotation"] for row in first.take(PROBES)] if streaming else LazyColumn(first, "annotation")
        )
        mask_format = detect_mask_format(annotations, classes)
    return SegmentationData(
        train=train,
        validation=validation,
        class_names=classes.names,
        palette=classes.palette,
        ignore_index=ignore_index,
        name=Path(path).resolve().name if Path(path).exists() else str(path),
        thin_classes=tuple(thin_classes),
        annotation_format=AnnotationFormat(
            len(classes.names),
            mask_format,
            ignore_index,
            classes.palette,
            classes.ignore_color,
            reduce_zero_label,
        ),
        description=clause,
    )


def _load_splits(
    path: str | Path, config_name: str | None, revision: str | None, cache_dir: str | Path | None, streaming: bool
) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    import datasets
    from huggingface_hub.utils import validate_repo_id

    local = Path(path)
    _check_parquet([local] if local.is_file() else sorted(local.rglob("*.parquet")) if local.is_dir() else [])
    if local.is_file():
        files = {"train": str(local)}
        return datasets.load_dataset("parquet", data_files=files, cache_dir=cache_dir, streaming=streaming)
    if local.is_dir() and not any(local.rglob("*.parquet")):
        raise ValueError(
            f"{local}: no parquet files here; for images/ and annotations/ use the data set name 'folder'"
        )
    with explained(path, "data set"):
        if not local.is_dir():
            validate_repo_id(str(path))
        return datasets.load_dataset(
            str(path), config_name, revision=revision, cache_dir=cache_dir, streaming=streaming
        )


def _check_parquet(files: Sequence[Path]) -> None:
    """Raise ValueError for a file that is damaged, whose name `datasets` would not say."""
    import pyarrow.parquet

    for file in files:
        if not file.is_file():
            raise ValueError(f"{shown(file)}: it must be a regular file")
        try:
            pyarrow.parquet.read_schema(file)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{shown(file)}: no parquet file, or damaged: {str(error).splitlines()[0]}") from None


def _choose_annotation_column(rows: datasets.Dataset, image_column: str, asked: str | None, path: str | Path) -> str:
    names = rows.column_names
    if image_column not in names:
        raise ValueError(f"{path}: image_column {image_column!r} is not among the columns {', '.join(names)}")
    if asked is not None:
        if asked not in names:
            raise ValueError(f"{path}: annotation_column {asked!r} is not among the columns {', '.join(names)}")
        return asked
    candidates = [name for name in ANNOTATION_COLUMNS if name in names and name != image_column]
    if len(candidates) != 1:
        raise ValueError(
            f"{path}: set annotation_column to the column of annotation pictures, one of {', '.join(names)}"
        )
    return candidates[0]


def named_classes(asked: Sequence[str] | Mapping[Any, str] | str | Path) -> ClassTable:
    """Return the classes a user names.

    Args:
        asked: Names, a mapping from id to name, a file as in `read_class_table`, names in a text with commas between
            them, or `"ade20k"`, `"cityscapes"` or `"coco-stuff"` for the names and colours of these data sets.

    Raises:
        ValueError: They are no class names.
    """
    if isinstance(asked, str) and asked in PUBLISHED_CLASSES:
        return ClassTable(PUBLISHED_CLASSES[asked].CLASS_NAMES, PUBLISHED_CLASSES[asked].PALETTE)
    if isinstance(asked, str) and "," in asked and not os.path.exists(asked):
        return make_class_table([name.strip() for name in asked.split(",")])
    if isinstance(asked, (str, Path)):
        return read_class_table(asked)
    return make_class_table(asked)


def _class_table(path: str | Path, asked: Any, rows: datasets.Dataset, revision: str | None) -> ClassTable:
    if asked is not None:
        return named_classes(asked)
    table = _class_file(path, revision) or _class_label_names(rows, path)
    if table is None:
        raise ValueError(
            f"{path}: no class names found ({', '.join(CLASS_FILES)}, or a column that is a list of ClassLabel); give "
            f"class_names as a list, a mapping from id to name, or a file"
        )
    return table


def _class_file(path: str | Path, revision: str | None) -> ClassTable | None:
    local = Path(path)
    if local.exists():
        folder = local if local.is_dir() else local.parent
        return find_class_table(folder) if any((folder / name).is_file() for name in CLASS_FILES) else None
    with explained(path, "data set"):
        for name in CLASS_FILES:
            if (file := hub_file(str(path), name, "dataset", revision)) is not None:
                return read_class_table(file)
    return None


def _class_label_names(rows: datasets.Dataset, path: str | Path) -> ClassTable | None:
    """A plain ClassLabel names the kind of a whole picture; only a list of them can name what is in it."""
    from datasets import ClassLabel

    lists = {column: getattr(feature, "feature", None) for column, feature in rows.features.items()}
    found = {column: inner.names for column, inner in lists.items() if isinstance(inner, ClassLabel)}
    if len(found) != 1:
        return None
    column, names = found.popitem()
    return make_class_table(names, source=f"{path}, column {column!r}")


def _train_and_validation(
    splits: datasets.DatasetDict,
    train_split: str,
    validation_split: str | None,
    validation_fraction: float,
    standard: Callable[[datasets.Dataset, str], datasets.Dataset],
    path: str | Path,
) -> tuple[datasets.Dataset, datasets.Dataset]:
    train = standard(splits[train_split], train_split)
    if validation_split is None:
        others = [name for name in VALIDATION_SPLITS if name in splits and name != train_split]
        validation_split = others[0] if others else None
    if validation_split is not None:
        if validation_split not in splits:
            raise ValueError(f"{path}: no split {validation_split!r}; there are {', '.join(splits)}")
        return train, standard(splits[validation_split], validation_split)
    if not hasattr(train, "__len__"):
        return train, MissingSplit(f"{path}: no validation split, and none can be held out of a streamed data set")
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction must lie between 0 and 1, got {validation_fraction}")
    if len(train) < 2:
        raise ValueError(
            f"{path}: at least two rows are needed to split into training and validation, got {len(train)}"
        )
    count = min(max(round(len(train) * validation_fraction), 1), len(train) - 1)
    held_out = {index * len(train) // count for index in range(count)}
    kept = [index for index in range(len(train)) if index not in held_out]
    return train.select(kept), train.select(sorted(held_out))


def _standard_columns(
    rows: datasets.Dataset, split: str, columns: tuple[str, str], path: str | Path, places: Places | None
) -> datasets.Dataset:
    """Return columns `image`, `annotation` and `file_name` (the stored path, else split and row number)."""
    import datasets

    if isinstance(rows, datasets.IterableDataset):
        return _streamed_columns(rows, split, columns, path, places)
    stored = rows.select_columns(list(columns)).rename_columns(
        dict(zip(columns, ("image", "annotation"), strict=True))
    )
    for column, given in zip(("image", "annotation"), columns, strict=True):
        if not isinstance(stored.features[column], datasets.Image):
            try:
                stored = stored.cast_column(column, datasets.Image())
            except (TypeError, ValueError, NotImplementedError) as error:
                kind = stored.features[column]
                raise ValueError(f"{path}: column {given!r} holds {kind}, which are no pictures: {error}") from None
    pictures = undecoded(stored)
    for column, given in zip(("image", "annotation"), columns, strict=True) if places else ():
        for index, (embedded, stem) in enumerate(_stored_paths(pictures, column)):
            if places and not embedded and stem is not None:
                _refuse_outside(stem, f"{path}: row {index} of split {split!r}, column {given!r}", places)
    if "file_name" in rows.column_names:
        names = rows["file_name"][:]
    else:
        names = [stem for _, stem in _stored_paths(pictures, "image")]
    names = [
        generated_name(split, index) if name is None or name == "" else str(name) for index, name in enumerate(names)
    ]
    for index, name in enumerate(names):
        if reason := row_name_fault(name):
            raise ValueError(f"{path}: row {index} of split {split!r}: file_name {printable(name[:80])!r} {reason}")
    return stored.add_column("file_name", names)


def _stored_paths(rows: datasets.Dataset, column: str) -> Iterator[tuple[bool, str | None]]:
    """Whether each row of an undecoded column of pictures holds the picture itself, and the path stored with it."""
    for start in range(0, len(rows), 1000):
        for chunk in rows.select_columns([column]).with_format("arrow")[start : start + 1000].column(column).chunks:
            embedded = chunk.field("bytes").is_valid().to_pylist()
            yield from zip(embedded, chunk.field("path").to_pylist(), strict=True)


def _own_places(path: str | Path, cache_dir: str | Path | None) -> Places:
    local = Path(path)
    if local.exists():
        return Places((os.path.realpath(local if local.is_dir() else local.parent),), ())
    from datasets.config import DOWNLOADED_DATASETS_PATH, EXTRACTED_DATASETS_PATH
    from huggingface_hub.constants import HF_HUB_CACHE

    downloads = [Path(cache_dir, "downloads")] if cache_dir else [DOWNLOADED_DATASETS_PATH, EXTRACTED_DATASETS_PATH]
    repository = Path(HF_HUB_CACHE, f"datasets--{str(path).replace('/', '--')}")
    own = f"hf://datasets/{path}"
    return Places(tuple(map(os.path.realpath, (repository, *downloads))), (f"{own}@", f"{own}/"))


def _refuse_outside(stored: str, where: str, places: Places) -> None:
    file = stored.rpartition("::")[2] if is_member_path(stored) else stored
    if "://" in file:
        inside = file.startswith(places.addresses) and "::" not in file and ".." not in file.split("/")
    else:
        try:
            real = os.path.realpath(file)
        except ValueError:  # a NUL in it
            real = ""
        inside = any(real.startswith(folder.rstrip(os.sep) + os.sep) for folder in places.folders)
    if not inside:
        raise ValueError(
            f"{where} holds no picture but the path {printable(stored[:200])!r}, which lies outside the data set "
            f"({', '.join(map(shown, places.folders))}): such files are not read unless allow_outside_files is set"
        )


def _streamed_columns(
    rows: datasets.IterableDataset, split: str, columns: tuple[str, str], path: str | Path, places: Places | None
) -> datasets.IterableDataset:
    """The same for a stream, whose rows have no numbers."""
    import datasets

    for column in columns:
        if not isinstance(rows.features[column], datasets.Image):
            raise ValueError(
                f"{path}: column {column!r} holds {rows.features[column]}, pictures are needed to stream it"
            )
        rows = rows.cast_column(column, datasets.Image(decode=False))
    picture = datasets.Image(decode=False)
    features = datasets.Features(image=picture, annotation=picture, file_name=datasets.Value("string"))
    pick = functools.partial(
        _pick_columns, columns=columns, where=f"{path}: split {split!r}", split=split, places=places
    )
    return rows.map(pick, remove_columns=rows.column_names, features=features)


def _pick_columns(
    row: Mapping[str, Any], columns: tuple[str, str], where: str, split: str, places: Places | None
) -> dict[str, Any]:
    image, annotation = (row[column] for column in columns)
    for column in columns if places else ():
        picture = row[column]
        if places and picture is not None and picture["bytes"] is None and picture["path"] is not None:
            _refuse_outside(picture["path"], f"{where}, column {column!r}", places)
    name = str(row.get("file_name") or image["path"] or split)
    if fault := row_name_fault(name):
        raise ValueError(f"{where}: file_name {printable(name[:80])!r} {fault}")
    return {"image": image, "annotation": annotation, "file_name": name}
