# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Loading by Hub id or folder, where whatever fails ends in one line that says what it was and what to do.

`transformers` and `datasets` wrap what `huggingface_hub` raises, some of it several times and some of it not at all.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError

try:
    import httpx2 as httpx
except ImportError:  # huggingface_hub below 2.0
    import httpx  # type: ignore[no-redef]

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from .image_processing_segformer import SegformerImageProcessor


def load_model(source: str | os.PathLike, **options: Any) -> PreTrainedModel:
    """Load a model for semantic segmentation as `AutoModelForSemanticSegmentation.from_pretrained` does.

    Args:
        source: Folder or Hub id.
        **options: Passed on.

    Raises:
        ValueError: There is no such model, it cannot be reached, or its files are damaged; one line says which.
    """
    from transformers import AutoModelForSemanticSegmentation

    with explained(source):
        return AutoModelForSemanticSegmentation.from_pretrained(source, **options)


def load_config(source: str | os.PathLike) -> PretrainedConfig:
    """Load a model's configuration as `AutoConfig.from_pretrained` does.

    Args:
        source: Folder or Hub id.

    Raises:
        ValueError: As `load_model`.
    """
    from transformers import AutoConfig

    with explained(source):
        return AutoConfig.from_pretrained(source)


def load_processor(
    source: str | os.PathLike, default: SegformerImageProcessor | None = None
) -> SegformerImageProcessor:
    """Load an image processor.

    Args:
        source: Folder or Hub id.
        default: What to return where the source has none, as many encoders; never where it could not be reached.

    Raises:
        ValueError: There is none, it cannot be reached, or its file is damaged; one line says which.
    """
    from .image_processing_segformer import SegformerImageProcessor

    with explained(source):
        names = ("preprocessor_config.json", "processor_config.json")
        local = Path(source) if os.path.isdir(source) else None
        files = (local / name if local else hub_file(str(source), name) for name in names)
        found = next((file for file in files if file is not None and file.is_file()), None)
        if found is not None:
            return SegformerImageProcessor.from_pretrained(found.parent)
    if default is None:
        raise ValueError(f"{source} has no image processor ({' or '.join(names)})")
    return default


def hub_file(repo_id: str, name: str, repo_type: str = "model", revision: str | None = None) -> Path | None:
    """A file of a repository in the cache, after it was fetched; None if the repository has none of that name.

    Raises:
        OSError: As `hf_hub_download`; also where the cache does not know whether there is such a file.
    """
    try:
        return Path(hf_hub_download(repo_id, name, repo_type=repo_type, revision=revision))
    except LocalEntryNotFoundError:  # no connection, or offline
        cached = try_to_load_from_cache(repo_id, name, repo_type=repo_type, revision=revision)
        if cached is None:
            raise
    except EntryNotFoundError:
        pass
    return None


@contextlib.contextmanager
def explained(source: str | os.PathLike, kind: str = "model") -> Iterator[None]:
    """Turn what loading from the Hub or a folder raises into `ValueError`s of one line.

    Args:
        source: What is loaded: a folder or Hub id, for the message.
        kind: "model" or "data set", for the message.
    """
    try:
        yield
    except (OSError, EntryNotFoundError, HFValidationError, httpx.TransportError) as error:
        raise ValueError(f"{source}: {_reason(error, kind)}") from error
    except (SafetensorError, EOFError) as error:
        raise ValueError(f"{source}: its weights are damaged or incomplete: {_first_line(error)}") from error


def _reason(error: BaseException, kind: str) -> str:
    links = list(_chain(error))
    for reason_of in (_hub_reason, _connection_reason):  # an answer explains more than the errors around it
        for link in links:
            if reason := reason_of(link, kind):
                return reason
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be read: {error.strerror}"
    return _first_line(error)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _hub_reason(error: BaseException, kind: str) -> str | None:
    unreached = isinstance(error, (LocalEntryNotFoundError, ConnectionError))
    if isinstance(error, OfflineModeIsEnabled) or (unreached and constants.HF_HUB_OFFLINE):
        return "it is not in the cache, and HF_HUB_OFFLINE is set: unset it, or name a folder"
    if isinstance(error, HFValidationError):
        return f"it is no folder here, and no Hub id of a {kind} (owner/name)"
    if isinstance(error, HfHubHTTPError):
        return _answer_reason(error, kind)
    return None


def _connection_reason(error: BaseException, kind: str) -> str | None:
    if not isinstance(error, (httpx.TransportError, ConnectionError, TimeoutError)):
        return None
    return (
        f"no connection to {constants.ENDPOINT}, and the {kind} is neither a folder here nor in the cache: "
        f"{_first_line(error)}"
    )


def _answer_reason(error: HfHubHTTPError, kind: str) -> str:
    """What the Hub answered, and what to do."""
    if isinstance(error, GatedRepoError):
        return "it is gated: ask for access on its page of the Hub, then log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, DisabledRepoError):
        return "its owner or the Hub has disabled it"
    if isinstance(error, RevisionNotFoundError):
        return "it has no such revision: name a branch, tag or commit of it"
    if isinstance(error, EntryNotFoundError):
        return f"it has no file {str(error.response.url).rpartition('/')[2]}"
    status = error.response.status_code
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return (
            f"it is no folder here, and the Hub shows no such {kind}: check the name; if it is private, log in with "
            "`hf auth login`, or set HF_TOKEN"
        )
    said = error.server_message or error.response.headers.get("X-Error-Message") or error.response.reason_phrase
    advice = {
        401: "the Hub does not accept the access token: log in anew with `hf auth login`, or set HF_TOKEN",
        403: "the access token may not read it: use one that may",
        429: "the Hub limits the rate of requests: try again later",
    }.get(status, "the Hub failed: try again" if status >= 500 else "the Hub refused it")
    return f"{advice}. The Hub said: {status} {said}"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
