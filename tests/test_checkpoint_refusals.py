# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that hold more than weights: never run, and named in one line without advice to trust them."""

import datetime
import functools
import io
import pickle
import tarfile
import zipfile

import pytest
import torch

from hf_segformer import SegformerForSemanticSegmentation
from hf_segformer.checkpoints.adapters import load_adapter
from hf_segformer.checkpoints.conversion import convert_checkpoint
from hf_segformer.checkpoints.files import read_checkpoint
from hf_segformer.training import load_encoder

WEIGHTS = {"a": torch.zeros(2)}


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.fixture
def poison(tmp_path):
    """An object that writes a file when it is unpickled; none may be there in the end."""
    touched = tmp_path / "touched"
    yield Call(eval, f"open({str(touched)!r}, 'w')")
    assert not touched.exists()


def refused(path):
    """The message with which a file is refused."""
    with pytest.raises(ValueError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and "weights_only" not in message
    assert "save its state dict alone" in message and "safetensors" in message
    return message


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "older"])
@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
@pytest.mark.parametrize("suffix", [".pth", ".bin", ".pt", ".ckpt"])
def test_calls_in_every_protocol(tmp_path, poison, is_zip, protocol, suffix):
    path = tmp_path / f"model{suffix}"
    content = {"state_dict": WEIGHTS, "meta": {"deep": [(poison,)]}}
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
    assert "eval, which weights never need and which could run code. It was not read" in refused(path)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "older"])
@pytest.mark.parametrize(
    "stored,name",
    [(datetime.datetime(2026, 1, 1), "datetime"), (functools.partial(print), "partial"), (torch.nn.Linear, "Linear")],
    ids=["date", "partial", "class"],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_a_file_refers_to_is_named(tmp_path, is_zip, protocol, stored, name):
    path = tmp_path / "model.pth"
    torch.save(WEIGHTS | {"x": stored}, path, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
    message = refused(path)
    assert name in message if protocol == 2 or name != "Linear" else "pickle protocol 4" in message


@pytest.mark.parametrize("protocol", [0, 4, 5])
def test_weights_alone_in_a_protocol_that_is_not_read(tmp_path, protocol):
    path = tmp_path / "model.pth"
    torch.save(WEIGHTS, path, pickle_protocol=protocol)
    message = refused(path)
    assert ("of pickle protocol" in message) and "eval" not in message


def test_names_that_a_pickle_takes_from_its_memo(tmp_path, poison):
    # The second of two references to one module reads the module's name back.
    path = tmp_path / "model.pth"
    torch.save(WEIGHTS | {"x": [datetime.date(2026, 1, 1), datetime.time(1), poison]}, path, pickle_protocol=4)
    assert "refers to datetime.date, datetime.time, builtins.eval" in refused(path)


def test_torchscript_and_tar_archives(tmp_path, poison):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    assert "a TorchScript archive, which holds code" in refused(tmp_path / "script.pt")
    for name, content in (("plain.pth", WEIGHTS), ("poison.pth.tar", poison)):
        with tarfile.open(tmp_path / name, "w") as archive:
            for member in ("storages", "tensors", "pickle"):
                data = pickle.dumps(content if member == "pickle" else 0, 2)
                entry = tarfile.TarInfo(member)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
        assert "a tar archive" in refused(tmp_path / name)


def test_zip_files_that_pytorch_did_not_write(tmp_path, poison):
    path = tmp_path / "model.pth"
    for content, words in ((poison, "refers to builtins.eval"), ({"a": 1}, "pickle protocol 4")):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(content, 4))
            archive.writestr("archive/version", "3\n")
        assert words in refused(path)


@pytest.mark.parametrize("content", [b"", b"<html>", bytes(4096), b"version https://git-lfs", b"ss", b"\x80\x02."])
def test_what_is_no_pickle_is_called_damaged(tmp_path, content):
    (tmp_path / "model.bin").write_bytes(content)
    message = refused(tmp_path / "model.bin")
    assert "is no checkpoint or is damaged" in message and "tar archive" not in message


def test_every_way_in(tmp_path, poison, tiny_config):
    path = tmp_path / "model" / "pytorch_model.bin"
    path.parent.mkdir()
    torch.save(WEIGHTS | {"x": poison}, path, pickle_protocol=4)
    model = SegformerForSemanticSegmentation(tiny_config())
    for read in (
        lambda source: convert_checkpoint(source, tmp_path / "out"),
        lambda source: load_encoder(model, source),
        read_checkpoint,
    ):
        with pytest.raises(ValueError, match=r"pytorch_model\.bin refers to builtins\.eval.* was not read") as caught:
            read(path.parent)
        assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_adapter_in_a_pickle(tmp_path, poison, tiny_config):
    pytest.importorskip("peft")
    (tmp_path / "adapter_config.json").write_text("{}")
    torch.save({"x": poison}, tmp_path / "adapter_model.bin")
    model = SegformerForSemanticSegmentation(tiny_config())
    with pytest.raises(ValueError, match=r"adapter_model\.bin is a pickle, .* not read: .*adapter_model\.safetensors"):
        load_adapter(model, tmp_path)
