# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Read checkpoint files of any origin without running anything they contain.

Pickles are read by `torch.load(weights_only=True)`. What training frameworks store beside weights is allowed by an
explicit list of names, each of which becomes an inert stand-in: neither mmengine nor numpy takes part in reading.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickletools
import re
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO

import torch

from ..json_files import read_json
from .layouts import listed

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
WEIGHT_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)

# What mmengine, mmcv, timm and others pickle beside the weights. None of it is used.
INERT_GLOBALS = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.ndarray",
    "numpy.dtype",
    "argparse.Namespace",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.WindowsPath",
)

# Modules of what every state dict is pickled with.
_KNOWN_MODULES = ("torch.", "collections.OrderedDict", "_codecs.encode", "copyreg._reconstructor")
_WAY_OUT = "save its state dict alone, with `torch.save` or as safetensors"

# Where files keep the weights: those to use, and running averages of them.
_CONTAINERS = ("state_dict", "model_state_dict", "model", "module")
_EMA_CONTAINERS = ("ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "ema")

# Training logs of 320k iterations fit; beyond that it is no checkpoint's metadata.
_MAX_PICKLE_BYTES = 256 * 2**20
# Hashing a deeply nested tuple overflows the interpreter's stack; checkpoints nest about ten deep.
_MAX_NESTING = 200
_MAX_NAME_LENGTH = 200
_CONFIG_TEXT_BYTES = 2**20
_IMAGE_SCALE = re.compile(r"\b(?:img_)?scale\s*=\s*\(\s*(\d{2,5})\s*,\s*(\d{2,5})\s*,?\s*\)")


@dataclass
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        state_dict: Tensors by name, on the CPU, as stored.
        files: SHA-256 of every file read, by file name.
        container: Keys that led to the tensors inside the file, such as "state_dict".
        class_names: Class names from the file's metadata, or None.
        palette: (R, G, B) in 0..255 of each of them, or None.
        image_scale: (longest, shortest) edge in pixels from the file's training configuration, or None.
        config: A `transformers` configuration beside the weights, or None.
        preprocessor_config: The image processor's beside the weights, or None.
        notes: What else a user should know.
    """

    state_dict: dict[str, torch.Tensor]
    files: dict[str, str] = field(default_factory=dict)
    container: str = ""
    class_names: tuple[str, ...] | None = None
    palette: list[list[int]] | None = None
    image_scale: tuple[int, int] | None = None
    config: dict[str, Any] | None = None
    preprocessor_config: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)


def read_checkpoint(source: str | Path, revision: str | None = None, ema: bool = False) -> Checkpoint:
    """Read a checkpoint: a file, a folder (sharded or not), or a model on the Hub.

    Args:
        source: Path, or Hub id "owner/name".
        revision: Branch, tag or commit on the Hub.
        ema: Where the file keeps averaged weights beside the others, take those.

    Returns:
        The tensors and what the file says about them.

    Raises:
        ValueError: There is no such source, or it is damaged, unsafe to read or no checkpoint; names the file.
    """
    path = Path(source)
    if path.is_file():
        return _read_weights([path], ema)
    if not path.is_dir():
        path = _download(str(source), revision)
    files, index = _weight_files(path)
    checkpoint = _read_weights(files, ema)
    if index is not None:
        _check_index(index, checkpoint.state_dict)
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if config.get("model_type") == "segformer":
        checkpoint.config = config
        if (path / "preprocessor_config.json").is_file():
            checkpoint.preprocessor_config = read_json(path / "preprocessor_config.json")
    return checkpoint


def _download(repo_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    from ..hub_errors import explained

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(
            f"source must be a file, a folder or a Hub id owner/name, got {repo_id!r}, which does not exist"
        )
    kinds = (["*.safetensors", "*.safetensors.index.json"], ["*.bin", "*.bin.index.json", "*.pth", "*.pt"])
    for patterns in kinds:
        with explained(repo_id):
            folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=[*patterns, "*config.json"]))
        # There is no folder where nothing matches.
        if folder.is_dir() and any(entry.suffix in WEIGHT_SUFFIXES for entry in folder.iterdir()):
            return folder
    raise ValueError(f"{repo_id!r} on the Hub has no weights ({', '.join(WEIGHT_SUFFIXES)})")


def _weight_files(folder: Path) -> tuple[list[Path], Path | None]:
    """The files with weights in `folder`, and the index that names them if there is one."""
    named = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if named is not None and named.suffix != ".json":
        return [named], None
    if named is not None:
        shards = sorted({str(name) for name in _weight_map(named).values()})
        wrong = [name for name in shards if Path(name).name != name or Path(name).suffix not in WEIGHT_SUFFIXES]
        if wrong:
            raise ValueError(f"{named}: shards must be weight files in the same folder, got {listed(wrong)}")
        if missing := [name for name in shards if not (folder / name).is_file()]:
            raise ValueError(f"{named}: shards are missing: {listed(missing)}")
        return [folder / name for name in shards], named
    found = sorted(path for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES)
    if len(found) != 1:
        names = listed(path.name for path in found) or "none"
        raise ValueError(f"{folder} must hold one checkpoint ({', '.join(WEIGHT_SUFFIXES)}), found {names}")
    return found, None


def _weight_map(index: Path) -> dict[str, Any]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} must have a weight_map from tensor to file")
    return weight_map


def _check_index(index: Path, state_dict: Mapping[str, torch.Tensor]) -> None:
    difference = set(_weight_map(index)) ^ set(state_dict)
    if difference:
        raise ValueError(f"{index} and its shards disagree about {listed(sorted(map(str, difference)))}")


def _read_weights(files: list[Path], ema: bool) -> Checkpoint:
    checkpoint = Checkpoint(state_dict={})
    for path in files:
        if path.suffix == ".safetensors":
            tensors = _read_safetensors(path)
        else:
            loaded = read_pickle(path)
            tensors = _unwrap(loaded, path, ema, checkpoint)
            _read_metadata(loaded, checkpoint)
        _check_tensors(tensors, path)
        if twice := sorted(set(tensors) & set(checkpoint.state_dict)):
            raise ValueError(f"{path} repeats tensors of another shard: {listed(twice)}")
        checkpoint.state_dict.update(tensors)
        with open(path, "rb") as file:
            checkpoint.files[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return checkpoint


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, RuntimeError, MemoryError) as error:
        raise ValueError(f"{path} is no safetensors file or is damaged: {error}") from error


class _Unread:
    """Stands in for whatever a checkpoint holds beside tensors and plain values."""

    def __init__(self, *args: Any) -> None:
        pass

    def __new__(cls, *args: Any) -> _Unread:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}


def read_pickle(path: Path) -> Any:
    references: list[str] = []
    try:
        with open(path, "rb") as file:
            _check_before_unpickling(file, references)
        with torch.serialization.safe_globals([(_Unread, name) for name in INERT_GLOBALS]):
            return torch.load(path, map_location="cpu", weights_only=True)
    # A reader of hostile input fails in any way; `torch` advises to switch off the protection, which we do not repeat.
    except Exception as error:
        raise ValueError(f"{path} {_reason(str(error) or type(error).__name__, references)}") from None


def _reason(said: str, references: list[str]) -> str:
    """Why a file could not be read, and what to do, without the advice of `torch`."""
    refused = re.search(r"GLOBAL (\S+)|(?:function|but got) (<.*?>)", said)
    foreign = [name for name in references if name not in INERT_GLOBALS and not name.startswith(_KNOWN_MODULES)]
    if refused or (foreign and "weights_only" in said):
        named = (refused[1] or refused[2]) if refused else listed(dict.fromkeys(foreign), 3)
        return (
            f"refers to {named}, which weights never need and which could run code. "
            f"It was not read; where you trust it, {_WAY_OUT}"
        )
    unknown = re.search(r"Unsupported operand (\d+)", said)
    if unknown and (opcode := _OPCODES.get(chr(int(unknown[1])))):
        return (
            f"uses {opcode.name} of pickle protocol {opcode.proto}, which PyTorch does not read without running code. "
            f"It was not read; where you trust it, {_WAY_OUT}"
        )
    if "weights_only" in said:
        said = "PyTorch cannot read it without running code"
    return f"is no checkpoint or is damaged: {said.splitlines()[0][:300]}. Get it anew, or {_WAY_OUT}"


def _check_before_unpickling(file: BinaryIO, references: list[str]) -> None:
    """Refuse what would exhaust memory or stack, or is code, before `torch.load` sees it; collects `references`."""
    is_archive = file.read(4) == b"PK\x03\x04"
    file.seek(0)
    if not is_archive:
        with contextlib.suppress(tarfile.TarError), tarfile.open(fileobj=file, mode="r:") as archive:
            if archive.next() is not None:
                raise ValueError("a tar archive, as PyTorch wrote before 2017")
        file.seek(0)
        for _ in range(5):  # the older format: magic number, version, system, object, storage keys
            references += _check_nesting(file)
        return
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.filename.endswith("/constants.pkl") for entry in entries):
            raise ValueError("a TorchScript archive, which holds code")
        if squeezed := [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]:
            raise ValueError(f"compressed entries, which PyTorch never writes: {listed(squeezed, 3)}")
        claimed, size = sum(entry.file_size for entry in entries), file.seek(0, 2)
        if claimed > size:
            raise ValueError(f"entries of {claimed} bytes in a file of {size}")
        for entry in entries:
            if entry.filename.endswith(".pkl"):
                if entry.file_size > _MAX_PICKLE_BYTES:
                    raise ValueError(f"{entry.filename} has {entry.file_size} bytes, {_MAX_PICKLE_BYTES} are allowed")
                with archive.open(entry) as stream:
                    references += _check_nesting(stream)


def _check_nesting(stream: IO[bytes]) -> list[str]:
    """Follow a pickle's stack without building anything, and refuse it if it nests too deep.

    Returns:
        Names of what it refers to.
    """
    stack: list[tuple[int, str]] = []  # how deep a value nests, and its text if it is one
    marks: list[int] = []
    memo: dict[int, tuple[int, str]] = {}
    references: list[str] = []
    start = None
    for opcode, argument, position in pickletools.genops(stream):
        start = position if start is None else start
        if (position or 0) - (start or 0) > _MAX_PICKLE_BYTES:
            raise ValueError(f"more than {_MAX_PICKLE_BYTES} bytes of metadata")
        try:
            _follow(opcode, argument, stack, marks, memo, references)
        except LookupError:
            raise ValueError(f"a pickle that takes what it has not put on its stack, at byte {position}") from None
    return references


def _follow(
    opcode: pickletools.OpcodeInfo,
    argument: Any,
    stack: list[tuple[int, str]],
    marks: list[int],
    memo: dict[int, tuple[int, str]],
    references: list[str],
) -> None:
    """What one instruction of a pickle does to stack and memo."""
    if opcode.name == "MARK":
        marks.append(len(stack))
    elif opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
        memo[argument] = stack[-1]
    elif opcode.name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    else:
        before = opcode.stack_before
        has_mark = pickletools.markobject in before
        first = marks.pop() - before.index(pickletools.markobject) if has_mark else len(stack) - len(before)
        if first < 0:
            raise LookupError
        taken = stack[first:]
        del stack[first:]
        depths = [depth for depth, _ in taken]
        if opcode.name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"):
            depth = max(depths[0], 1 + max(depths[1:], default=-1))
        else:
            depth = 1 + max(depths, default=-1)
        if depth > _MAX_NESTING:
            raise ValueError(f"metadata nested more than {_MAX_NESTING} deep")
        if opcode.name in ("GLOBAL", "INST"):
            references.append(argument.replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            references.append(".".join(text for _, text in taken))
        stack.extend([(depth, argument if isinstance(argument, str) else "?")] * len(opcode.stack_after))


def _unwrap(loaded: Any, path: Path, ema: bool, checkpoint: Checkpoint) -> dict[str, Any]:
    """Find the state dict inside what a file holds; fills `checkpoint.container` and notes."""
    wanted = (*_EMA_CONTAINERS, *_CONTAINERS) if ema else (*_CONTAINERS, *_EMA_CONTAINERS)
    keys: list[str] = []
    while isinstance(loaded, dict) and (inside := [key for key in wanted if isinstance(loaded.get(key), dict)]):
        if not ema and (averaged := [key for key in inside if key in _EMA_CONTAINERS and key != inside[0]]):
            checkpoint.notes.append(
                f"the file also holds averaged weights under {listed(averaged)}, which are left out"
            )
        keys.append(inside[0])
        loaded = loaded[inside[0]]
    checkpoint.container = ".".join(keys)
    if not isinstance(loaded, dict) or not any(isinstance(value, torch.Tensor) for value in loaded.values()):
        found = f"keys {listed(map(str, loaded), 10)}" if isinstance(loaded, dict) else type(loaded).__name__
        raise ValueError(f"{path} holds no weights by name, but {found}")
    counters = [key for key, value in loaded.items() if key in ("steps", "n_averaged") and isinstance(value, int)]
    return {key: value for key, value in loaded.items() if key not in counters}


def _check_tensors(tensors: Mapping[str, Any], path: Path) -> None:
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise ValueError(f"{path}: names of weights must be text, got {name!r:.100}")
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            raise ValueError(f"{path}: {name} must be a tensor, got {type(tensor).__name__.lstrip('_')}")
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_complex():
            raise ValueError(f"{path}: {name} must be a dense real tensor, got {tensor.dtype}, {tensor.layout}")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            stored = tensor.untyped_storage().nbytes()
            raise ValueError(f"{path}: {name} claims the shape {tuple(tensor.shape)}, but {stored} bytes are stored")


def _read_metadata(loaded: Any, checkpoint: Checkpoint) -> None:
    """Class names, palette and picture size, as mmcv (`CLASSES`, `config`) and mmengine (`dataset_meta`, `cfg`) do."""
    meta = loaded.get("meta") if isinstance(loaded, dict) else None
    if not isinstance(meta, dict):
        return
    about = meta["dataset_meta"] if isinstance(meta.get("dataset_meta"), dict) else meta
    names: Any = about.get("classes", about.get("CLASSES"))
    if _is_list(names) and all(isinstance(name, str) for name in names):
        if any(len(name) > _MAX_NAME_LENGTH for name in names):
            raise ValueError(f"class names in the metadata must have at most {_MAX_NAME_LENGTH} characters")
        checkpoint.class_names = tuple(name.strip() for name in names)
    palette: Any = about.get("palette", about.get("PALETTE"))
    if checkpoint.class_names and _is_palette(palette, len(checkpoint.class_names)):
        checkpoint.palette = [list(color) for color in palette]
    text = next((meta[key] for key in ("cfg", "config") if isinstance(meta.get(key), str)), "")[:_CONFIG_TEXT_BYTES]
    scales = {(int(width), int(height)) for width, height in _IMAGE_SCALE.findall(text)}
    if len(scales) == 1:
        scale = scales.pop()
        checkpoint.image_scale = (max(scale), min(scale))


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and 0 < len(value) <= 2**16


def _is_palette(value: Any, count: int) -> bool:
    return (
        _is_list(value)
        and len(value) == count
        and all(_is_list(color) and len(color) == 3 for color in value)
        and all(isinstance(part, int) and 0 <= part <= 255 for color in value for part in color)
    )
