# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""A model folder on the Hub: its model card, its check, and its push as one commit."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import torch
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_session,
)
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import hf_raise_for_status, validate_repo_id
from huggingface_hub.utils._runtime import is_xet_available
from safetensors import SafetensorError, safe_open

from .. import modeling_segformer
from ..configuration_segformer import SegformerConfig
from ..json_files import read_json
from ..texts import listed, short_repr
from .code import flat_code
from .folder_card import checked_card, folder_license
from .model_card import model_card, replace_example
from .onnx_files import check_onnx_file

try:
    import httpx2 as httpx
except ImportError:  # huggingface_hub below 2.0
    import httpx  # type: ignore[no-redef]

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

_T = TypeVar("_T")

__all__ = ["PushError", "check_folder", "folder_license", "model_card", "push_folder", "write_code"]

_AUTO_CLASSES = {
    "AutoModel": "SegformerModel",
    "AutoModelForSemanticSegmentation": "SegformerForSemanticSegmentation",
    "AutoModelForImageClassification": "SegformerForImageClassification",
    "AutoBackbone": "SegformerBackbone",
}
# Everything else (saved states, logs, optimizer and pickle files, hidden and temporary files) stays at home.
_PUSHED = (
    *("*.json", "*.safetensors", "*.md", "*.txt", "*.png", "*.jpg", "*.jpeg", "LICENSE*", "NOTICE*"),
    *("overlays/*.png", "overlays/*.jpg", "overlays/*.jpeg"),
    *("onnx/*.onnx", "onnx/*.onnx_data", "onnx/*.onnx.data"),  # the last two hold weights of files in several parts
)
_KEPT_HOME = {"trainer_state.json", "trackers.json"}
# Weights that `from_pretrained` could take instead of the pushed ones.
_WEIGHT_FILE = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")
_RETRY_WAITS = (1, 2, 4, 8)  # seconds
_LONGEST_RETRY_AFTER = 120  # seconds; a server that asks for more is not waited for
_TRANSIENT = {408, 429, 500, 502, 503, 504}


class PushError(RuntimeError):
    """The Hub did not take a push; the message says what happened and what to do."""


# ---- what is pushed


def check_folder(folder: str | os.PathLike) -> SegformerConfig:
    """Check that a folder holds a complete model.

    Args:
        folder: Folder with config.json, preprocessor_config.json and model.safetensors, the last possibly in shards.

    Returns:
        The configuration.

    Raises:
        ValueError: A file is missing, unreadable or at odds with the configuration, or a weight is not finite.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"folder must be a model folder, got {folder}, which is none")
    config_file, processor_file = folder / "config.json", folder / "preprocessor_config.json"
    fields, processor = read_json(config_file), read_json(processor_file)
    if (model_type := fields.get("model_type")) != SegformerConfig.model_type:
        raise ValueError(f"model_type must be {SegformerConfig.model_type!r} in {config_file}, got {model_type!r}")
    processor_type = processor.get("image_processor_type") or processor.get("feature_extractor_type")
    if not str(processor_type).startswith("Segformer"):
        raise ValueError(
            f"image_processor_type must be 'SegformerImageProcessor' in {processor_file}, got {processor_type!r}"
        )
    config = SegformerConfig.from_pretrained(folder)
    architecture = (config.architectures or [""])[0]
    if architecture not in _AUTO_CLASSES.values():
        names = sorted(_AUTO_CLASSES.values())
        raise ValueError(f"architectures must be one of {names} in {config_file}, got {config.architectures}")
    _check_weights(folder, config, architecture)
    return config


def _check_weights(folder: Path, config: SegformerConfig, architecture: str) -> None:
    with torch.device("meta"):
        model = getattr(modeling_segformer, architecture)(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    index, seen = folder / "model.safetensors.index.json", set()
    files = ["model.safetensors"]
    if not (folder / files[0]).exists() and index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise ValueError(f"weight_map must lead from tensors to files in {index}, got {short_repr(weight_map)}")
        files = sorted(set(weight_map.values()))
    for name in files:
        seen |= _check_tensors(folder / name, expected)
    # Counters of batches, which some converters leave out, are not used in inference.
    missing = sorted(name for name in expected.keys() - seen if not name.endswith("num_batches_tracked"))
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} weights of {architecture}: {listed(missing, 5)}")


def _check_tensors(path: Path, expected: dict[str, tuple[int, ...]]) -> set[str]:
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            if (file.metadata() or {}).get("format") != "pt":
                raise ValueError(f'metadata must be {{"format": "pt"}} in {path}, or transformers does not read it')
            if unknown := sorted(names - expected.keys()):
                raise ValueError(
                    f"{path} holds {len(unknown)} weights that the configuration lacks: {listed(unknown, 5)}"
                )
            for name in sorted(names):
                tensor = file.get_tensor(name)
                if tuple(tensor.shape) != expected[name]:
                    shapes = f"{expected[name]} by the configuration, got {tuple(tensor.shape)}"
                    raise ValueError(f"{name} must have the shape {shapes} in {path}")
                if tensor.is_floating_point() and not tensor.isfinite().all():
                    raise ValueError(f"{name} must be finite in {path}, got nan or infinity")
    except SafetensorError as error:
        raise ValueError(f"{path} is no complete safetensors file: {error}") from error
    return names


def write_code(folder: str | os.PathLike) -> None:
    """Put the code of the classes into a model folder, and into its JSON files where each Auto class finds its own.

    The folder then loads with `trust_remote_code=True` where this package is not installed, with every head, from
    transformers 5.17 on. (`AutoBackbone` of transformers takes ids of the Hub only, no folders.) Unlike
    `register_for_auto_class`, this changes no `save_pretrained` of the process.

    Args:
        folder: Model folder; `push_folder(..., with_code=True)` does the same without changing it.

    Raises:
        ValueError: config.json or preprocessor_config.json is missing or no JSON.
    """
    folder = Path(folder)
    contents: dict[str, Path | bytes] = {name: folder / name for name in ("config.json", "preprocessor_config.json")}
    for name, content in _with_auto_maps(contents, with_code=True).items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())


def _with_auto_maps(contents: dict[str, Path | bytes], with_code: bool) -> dict[str, Path | bytes]:
    """Contents with or without the code and the references to it, whichever they had before."""
    auto_maps = {
        "config.json": {"AutoConfig": "configuration_segformer.SegformerConfig"}
        | {auto: f"modeling_segformer.{name}" for auto, name in _AUTO_CLASSES.items()},
        "preprocessor_config.json": {"AutoImageProcessor": "image_processing_segformer.SegformerImageProcessor"},
    }
    contents = dict(contents)
    for name, auto_map in auto_maps.items():
        path = contents[name]
        assert isinstance(path, Path)
        fields = read_json(path)
        if fields.pop("auto_map", None) or with_code:
            fields |= {"auto_map": auto_map} if with_code else {}
            contents[name] = f"{json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False)}\n".encode()
    if with_code:
        contents |= flat_code()
    return contents


def _contents(folder: Path, config: SegformerConfig, image: str | os.PathLike | None) -> dict[str, Path | bytes]:
    """Files to push by name, with the overlay of a picture if one is given."""
    contents: dict[str, Path | bytes] = {**_find_files(folder)}
    for name in contents:
        if name.endswith(".onnx"):
            check_onnx_file(folder / name, config, folder)
    if image is not None:
        if (folder / "README.md").exists() or config.architectures != ["SegformerForSemanticSegmentation"]:
            raise ValueError(f"image is for segmentation models without README.md, got {image} for {folder}")
        contents["overlays/example.png"] = _draw_overlay(folder, image)
    return contents


def _find_files(folder: Path) -> dict[str, Path]:
    paths = {path for pattern in _PUSHED for path in folder.glob(pattern) if path.is_file()}
    names = {path.relative_to(folder).as_posix(): path for path in sorted(paths)}
    return {name: path for name, path in names.items() if name not in _KEPT_HOME and not path.name.startswith(".")}


def _draw_overlay(folder: Path, image: str | os.PathLike) -> bytes:
    """PNG of an image beside the model's prediction."""
    from PIL import Image, ImageOps

    from ..evaluation.inference import predict_label_map
    from ..image_processing_segformer import SegformerImageProcessor
    from ..visualization import palette_for, panel

    model = modeling_segformer.SegformerForSemanticSegmentation.from_pretrained(folder)
    try:
        picture = ImageOps.exif_transpose(Image.open(image)).convert("RGB")
    except (OSError, SyntaxError) as error:
        raise ValueError(f"image must be a picture, got {image}: {error}") from error
    label_map = predict_label_map(model, SegformerImageProcessor.from_pretrained(folder), picture)
    names, palette = model.config.class_names, model.config.class_palette
    buffer = io.BytesIO()
    panel(picture, None, label_map, names, palette or palette_for(len(names))).save(buffer, format="png")
    return buffer.getvalue()


# ---- push


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    with_code: bool = False,
    license: str | None = None,
    license_name: str | None = None,
    license_link: str | None = None,
    dataset: str | None = None,
    image: str | os.PathLike | None = None,
    commit_message: str = "Upload SegFormer",
    parent_commit: str | None = None,
    token: str | None = None,
) -> CommitInfo:
    """Push a model folder to the Hub as one commit.

    Weights, configuration, processor, model card, metrics, pictures and onnx/ are pushed; saved states, logs, pickles
    and temporary files are not. Weights that only the repository has are deleted in the same commit, so that
    `from_pretrained` cannot find them first. The folder is checked before anything is sent, and not changed.
    Failures that may pass (429, 5xx, a lost connection) are tried again for a bounded time. Where Xet fails, LFS is
    taken; Xet's client takes minutes to give up a store that does not answer, which HF_HUB_DISABLE_XET=1 saves.

    Args:
        folder: Model folder, see `check_folder`.
        repo_id: "name" or "namespace/name"; created if it does not exist.
        private: Create it as a private repository; an existing public one is refused.
        revision: Branch, created if it does not exist; the main one by default.
        create_pr: Open a pull request instead of changing the branch.
        with_code: Also push the code of the classes, for `trust_remote_code=True`; see `write_code`.
        license: Licence of the weights, instead of the model card's; needed if that states none.
        license_name: Name of the licence where `license` is "other".
        license_link: Its address.
        dataset: Name of the data set of metrics.json, where the folder has no README.md.
        image: Picture to segment for the model card of a folder that has no README.md.
        commit_message: First line of the commit message.
        parent_commit: Refuse if the branch has moved on from this commit; by default its head when the push begins.
        token: Access token; by default the one of `hf auth login` or `HF_TOKEN`.

    Returns:
        The commit, as `huggingface_hub` describes it; `pr_url` is set with `create_pr`.

    Raises:
        ValueError: The folder is not complete, its licence unknown, or its model card refused; nothing was sent.
        PushError: The Hub refused, or did not answer.
    """
    validate_repo_id(repo_id)
    folder, api = Path(folder), HfApi(token=token)
    config = check_folder(folder)
    contents = _contents(folder, config, image)
    licence = {"license": license, "license_name": license_name, "license_link": license_link}
    card = checked_card(folder, contents, repo_id, dataset, config, licence)
    with _explained(repo_id):
        repo_id = repo_id if "/" in repo_id else f"{_retried(api.whoami)['name']}/{repo_id}"
        text = replace_example(str(card), repo_id, config, with_code)
        contents = _with_auto_maps(contents, with_code) | {"README.md": text.encode()}
        _prepare_repository(api, repo_id, text, private, None if create_pr else revision)
        return _commit(api, repo_id, contents, revision, create_pr, commit_message, parent_commit)


def _validate_card(api: HfApi, card: str) -> None:
    """The Hub's own check of a model card, before there is a repository."""
    body = {"content": card, "repoType": "model"}

    def post() -> None:
        response = get_session().post(f"{api.endpoint}/api/validate-yaml", json=body)
        if response.status_code == 400:
            messages = [error.get("message", "") for error in response.json().get("errors", [])]
            raise ValueError(f"the Hub refuses the metadata of README.md: {'; '.join(messages)}")
        hf_raise_for_status(response)

    _retried(post)


def _prepare_repository(api: HfApi, repo_id: str, card: str, private: bool, branch: str | None) -> None:
    _validate_card(api, card)
    # `private` left out is the account's default.
    _retried(lambda: api.create_repo(repo_id, private=private or None, exist_ok=True))
    if private and not _retried(lambda: api.model_info(repo_id)).private:
        raise ValueError(f"private was asked for, but {repo_id} exists and is public: choose another repo_id")
    if branch is not None and not branch.startswith("refs/"):
        _retried(lambda: api.create_branch(repo_id, branch=branch, exist_ok=True))


def _commit(
    api: HfApi,
    repo_id: str,
    contents: dict[str, Path | bytes],
    revision: str | None,
    create_pr: bool,
    commit_message: str | None,
    parent_commit: str | None,
) -> CommitInfo:
    options: dict[str, Any] = {"revision": revision, "create_pr": create_pr}
    xet_failed = False

    def attempt() -> CommitInfo:
        nonlocal parent_commit, xet_failed
        # All asked for anew each time: if a commit succeeded and only the answer was lost, nothing is left to change.
        info = api.model_info(repo_id, revision=revision)
        parent_commit = parent_commit or info.sha
        old = [file.rfilename for file in info.siblings or () if _WEIGHT_FILE.fullmatch(file.rfilename)]
        operations = [CommitOperationDelete(name) for name in old if name not in contents]
        with contextlib.ExitStack() as files:
            # What Xet does not take: `huggingface_hub` sends open files through LFS.
            given = {name: _opened(content, files) for name, content in contents.items()} if xet_failed else contents
            additions = [CommitOperationAdd(name, content) for name, content in sorted(given.items())]
            try:
                api.preupload_lfs_files(repo_id, additions, free_memory=False, **options)
            except OfflineModeIsEnabled:
                raise
            except (HfHubHTTPError, httpx.TransportError) as error:
                raise RuntimeError("upload failed") from error  # huggingface_hub has repeated these requests itself
            except (OSError, RuntimeError) as error:  # all that hf_xet raises, after it has tried again itself
                if xet_failed or not is_xet_available():
                    raise
                xet_failed = True
                warnings.warn(f"the upload through Xet failed, so it is done through LFS: {error}", stacklevel=2)
                return attempt()
            message: dict[str, Any] = {"commit_message": commit_message, "parent_commit": parent_commit}
            return api.create_commit(repo_id, [*operations, *additions], **message, **options)

    # A second request would open a second pull request if only the answer to the first was lost.
    return _retried(attempt, {429} if create_pr else _TRANSIENT)


def _opened(content: Path | bytes, files: contextlib.ExitStack) -> BinaryIO:
    return io.BytesIO(content) if isinstance(content, bytes) else files.enter_context(content.open("rb"))


def _retried(call: Callable[[], _T], transient: set[int] = _TRANSIENT) -> _T:
    """Call again after failures that may pass: `huggingface_hub` repeats uploads, but neither commits nor the rest."""
    for wait in _RETRY_WAITS:
        try:
            return call()
        except HfHubHTTPError as error:
            if error.response.status_code not in transient:
                raise
            asked = error.response.headers.get("Retry-After", "")
            wait = int(asked) if asked.isdigit() else wait
            if wait > _LONGEST_RETRY_AFTER:
                raise
        except (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError):
            if transient != _TRANSIENT:
                raise
        time.sleep(wait)
    return call()


@contextlib.contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """Translate what `huggingface_hub` raises into `PushError`."""
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise PushError("no access token: log in with `hf auth login`, or set HF_TOKEN") from error
    except OfflineModeIsEnabled as error:
        raise PushError("HF_HUB_OFFLINE is set: unset it to push") from error
    except (HfHubHTTPError, httpx.TransportError, RuntimeError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, (HfHubHTTPError, httpx.TransportError)):
            cause = cause.__cause__  # failed uploads are wrapped
        if cause is None:
            raise
        raise PushError(_explanation(cause, repo_id)) from error
    except OSError as error:
        if error.filename is None:
            raise
        raise PushError(f"{error.filename} could not be read during the push: {error.strerror}") from error


def _explanation(error: Exception, repo_id: str) -> str:
    if not isinstance(error, HfHubHTTPError):
        return f"no connection to {constants.ENDPOINT} while pushing to {repo_id}: {error or type(error).__name__}"
    status = error.response.status_code
    said = error.server_message or error.response.headers.get("X-Error-Message") or error.response.reason_phrase
    advice = {
        401: "the Hub does not accept the access token: log in anew with `hf auth login`, or set HF_TOKEN",
        403: "the access token may not write there: use one with write access, or propose the change with create_pr",
        404: "the repository or revision does not exist, or the access token may not see it",
        409: "something else is changing the repository, or the name is taken: push again",
        412: "the branch got another commit meanwhile, so nothing was committed: look at it and push again",
        429: "the Hub limits the rate of requests: push again later",
    }.get(status, "the Hub failed: push again" if status >= 500 else "the Hub refused it")
    waiting = error.response.headers.get("Retry-After")
    return f"{repo_id}: {advice}{f' (after {waiting} s)' if waiting else ''}. The Hub said: {status} {said}"
