# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Pushing with the real client to a Hub on the loopback, everything that can go wrong, and loading what was pushed."""

import hashlib
import io
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, ModelCard, constants, get_session
from PIL import Image

import example_scripts
from hf_segformer import SegformerForSemanticSegmentation, SegformerImageProcessor, SegformerModel
from hf_segformer.hub.code import flat_code
from hf_segformer.hub.push import PushError, push_folder, write_code
from hub_server import HubServer
from scene_folder import write_scene_folder
from versions import needs_auto_processor

pytest_plugins = ["hub_fixtures"]
REPOSITORY = Path(__file__).resolve().parent.parent
PUSHED = {
    "README.md",
    "config.json",
    "metrics.json",
    "model.safetensors",
    "overlays/a.png",
    "preprocessor_config.json",
}


def digests(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


# ---- push


def test_push_is_one_commit_of_the_right_files(hub, folder):
    before = digests(folder)
    info = push_folder(folder, "user/model", license="mit")
    assert digests(folder) == before
    assert [commit.oid for commit in hub.log("user/model")] == [info.oid]
    files = hub.files("user/model")
    assert set(files) == PUSHED
    for name in PUSHED - {"README.md"}:
        assert files[name] == (folder / name).read_bytes(), name
    card = files["README.md"].decode()
    assert ModelCard(card).data.license == "mit" and ModelCard(card).data.eval_results[0].metric_value == 0.4321
    assert 'model="user/model"' in card and str(folder) not in card
    assert hub.unknown == [] and hub.count("lfs-put") == 2  # weights and picture


def test_second_push_commits_only_what_changed(hub, folder):
    first = push_folder(folder, "model", license="mit")
    assert push_folder(folder, "model", license="mit").oid == first.oid
    assert len(hub.log("user/model")) == 1
    (folder / "metrics.json").write_text("{}")
    push_folder(folder, "model", license="mit")
    assert len(hub.log("user/model")) == 2 and hub.count("lfs-put") == 2
    assert hub.files("user/model")["metrics.json"] == b"{}"


def test_weights_that_the_folder_does_not_have_are_removed(hub, folder):
    hub.create("user/model")
    old = ["pytorch_model.bin", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    hub.commit("user/model", dict.fromkeys([*old, "vocabulary.txt", "onnx/model.onnx"], b"old"))
    push_folder(folder, "user/model", license="mit")
    assert set(hub.files("user/model")) == PUSHED | {"vocabulary.txt", "onnx/model.onnx"}
    assert len(hub.log("user/model")) == 2


def test_large_files_go_up_in_parts(use_hub, folder):
    with HubServer(multipart_size=10_000) as hub:
        use_hub(hub)
        push_folder(folder, "user/model", license="mit")
        assert hub.count("lfs-part") > 5 and hub.count("lfs-complete") == 1
        assert hub.files("user/model")["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_folder_without_a_card_gets_one_with_a_picture(hub, folder, tmp_path):
    (folder / "README.md").unlink()
    (folder / "overlays/a.png").unlink()
    image = tmp_path / "image.jpg"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 56, 3), dtype=np.uint8)).save(image)
    with pytest.raises(ValueError, match="dataset must name"):
        push_folder(folder, "user/model", license="mit")
    with pytest.raises(ValueError, match=r"image must be a picture, got .*config\.json"):
        push_folder(folder, "user/model", license="mit", dataset="scenes", image=folder / "config.json")
    with pytest.raises(ValueError, match="Repo id must"):
        push_folder(folder, "user/my model", license="mit", dataset="scenes")
    assert hub.requests == []
    push_folder(folder, "user/model", license="mit", dataset="scenes", image=image)
    files = hub.files("user/model")
    data = ModelCard(files["README.md"].decode()).data
    assert data.eval_results[0].dataset_name == "scenes" and "overlays/example.png" in files["README.md"].decode()
    assert files["overlays/example.png"].startswith(b"\x89PNG")


def test_private_branch_and_pull_request(hub, folder, monkeypatch):
    push_folder(folder, "user/secret", license="mit", private=True)
    assert hub.repositories["user/secret"].private
    push_folder(folder, "user/model", license="mit", revision="half")
    assert hub.log("user/model") == [] and len(hub.log("user/model", "half")) == 1
    with pytest.raises(ValueError, match="exists and is public"):
        push_folder(folder, "user/model", license="mit", private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    info = push_folder(folder, "user/model", license="mit", create_pr=True)
    assert info.pr_url == f"{hub.endpoint}/user/model/discussions/1"
    assert hub.log("user/model") == [] and [c.oid for c in hub.log("user/model", "refs/pr/1")] == [info.oid]
    assert hub.unknown == []


# ---- what goes wrong on the way

PASSING = [
    ("validate-yaml", {"status": 503}),
    ("create", {"status": 500}),
    ("create", {"lose_answer": True}),
    ("info", {"status": 502}),
    ("preupload", {"status": 429, "headers": {"Retry-After": "3"}}),
    ("lfs-batch", {"status": 503, "times": 2}),
    ("lfs-put", {"status": 500}),
    ("lfs-put", {"cut_after": 3000, "times": 2}),
    ("lfs-verify", {"status": 503}),
    ("commit", {"status": 503, "times": 3}),
    ("commit", {"status": 429, "headers": {"Retry-After": "7"}}),
    ("commit", {"cut_after": 500}),
    ("commit", {"lose_answer": True}),
]


@pytest.mark.parametrize("route,fault", PASSING, ids=[f"{route}-{'-'.join(fault)}" for route, fault in PASSING])
def test_failures_that_pass_end_in_one_commit(hub, folder, waits, route, fault):
    hub.inject(route, **fault)
    push_folder(folder, "user/model", license="mit")
    assert len(hub.log("user/model")) == 1
    assert set(hub.files("user/model")) == PUSHED
    assert hub.files("user/model")["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert len(waits) == fault.get("times", 1)
    if asked := fault.get("headers"):
        assert waits[0] in (int(asked["Retry-After"]), int(asked["Retry-After"]) + 1)


@pytest.mark.parametrize("route", ["create", "info", "preupload", "lfs-batch", "lfs-put", "lfs-verify", "commit"])
def test_failures_that_stay_end_in_an_error_after_a_bounded_time(hub, folder, waits, route):
    hub.inject(route, status=503, times=1000)
    with pytest.raises(PushError, match="503"):
        push_folder(folder, "user/model", license="mit")
    assert hub.count(route) <= 12 and sum(waits) < 60  # two files, six requests each
    assert "user/model" not in hub.repositories or hub.log("user/model") == []


def test_a_server_that_asks_for_an_hour_is_not_waited_for(hub, folder, waits):
    hub.inject("commit", status=429, headers={"Retry-After": "3600"})
    with pytest.raises(PushError, match=r"later \(after 3600 s\)"):
        push_folder(folder, "user/model", license="mit")
    assert waits == [] and hub.log("user/model") == []


def test_no_second_pull_request_when_the_answer_is_lost(hub, folder, waits):
    hub.create("user/model")
    hub.inject("commit", lose_answer=True)
    with pytest.raises(PushError, match="no connection"):
        push_folder(folder, "user/model", license="mit", create_pr=True)
    assert [name for name in hub.repositories["user/model"].refs if "pr" in name] == ["refs/pr/1"]


def test_no_server(hub, folder, waits, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PushError, match=r"no connection to http://127\.0\.0\.1:9"):
        push_folder(folder, "user/model", license="mit")


def test_a_branch_that_moved_on_is_not_overwritten(hub, folder):
    hub.create("user/model")
    theirs = []
    hub.inject("commit", before=lambda: theirs.append(hub.commit("user/model", {"README.md": b"theirs"})))
    with pytest.raises(PushError, match="got another commit meanwhile, so nothing was committed"):
        push_folder(folder, "user/model", license="mit")
    assert hub.log("user/model") == theirs and hub.files("user/model") == {"README.md": b"theirs"}
    first = hub.repositories["user/model"].commits[theirs[0].oid].parent
    with pytest.raises(PushError, match="412"):
        push_folder(folder, "user/model", license="mit", parent_commit=first)
    push_folder(folder, "user/model", license="mit", parent_commit=theirs[0].oid)
    assert len(hub.log("user/model")) == 2


def test_a_file_that_changes_during_the_push_is_refused(hub, folder):
    path = folder / "model.safetensors"
    changed = path.read_bytes()[:-4] + b"\0\0\0\1"
    hub.inject("lfs-batch", before=lambda: path.write_bytes(changed))
    with pytest.raises(PushError, match="SHA256 you specified did not match"):
        push_folder(folder, "user/model", license="mit")
    assert hub.log("user/model") == []


def test_a_commit_of_an_object_that_is_gone_is_refused(hub, folder):
    hub.inject("commit", before=lambda: hub.repositories["user/model"].objects.clear())
    with pytest.raises(PushError, match=r"400 .*LFS pointer pointed to a file that does not exist"):
        push_folder(folder, "user/model", license="mit")
    assert hub.log("user/model") == []


@pytest.mark.parametrize(
    "token,status,advice",
    [("hf_wrong", 401, "hf auth login"), ("hf_stranger", 403, "create_pr"), ("hf_reader", 403, "write access")],
)
@pytest.mark.parametrize("exists", [False, True])
def test_tokens_that_may_not_write(hub, folder, token, status, advice, exists):
    if exists:
        hub.create("user/model")
    with pytest.raises(PushError, match=rf"{advice}.* {status} "):
        push_folder(folder, "user/model", license="mit", token=token)
    assert hub.count("commit") == 0


def test_no_token(hub, folder, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(PushError, match="hf auth login"):
        push_folder(folder, "user/model", license="mit")
    with pytest.raises(PushError, match="no access token: log in"):
        push_folder(folder, "model", license="mit")


def test_conflict_and_offline(hub, folder, monkeypatch):
    hub.inject("commit", status=409)
    with pytest.raises(PushError, match="something else is changing"):
        push_folder(folder, "user/model", license="mit")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PushError, match="HF_HUB_OFFLINE is set"):
        push_folder(folder, "user/model", license="mit")


def test_metadata_that_the_hub_refuses_create_nothing(hub, folder):
    with pytest.raises(ValueError, match=r"refuses the metadata of README\.md: \"license\" must be one of"):
        push_folder(folder, "user/model", license="apache2")
    assert hub.repositories == {}


@pytest.mark.parametrize(
    "lines,status",
    [
        ([{"key": "file", "value": {"path": "x.bin", "content": "AAAA", "encoding": "base64"}}], 400),
        ([{"key": "lfsFile", "value": {"path": "x.bin", "algo": "sha256", "oid": "0" * 64, "size": 1}}], 400),
        ([{"key": "lfsFile", "value": {"path": "x.bin", "algo": "sha256", "oid": "known", "size": 1}}], 400),
        ([{"key": "lfsFile", "value": {"path": "x.bin", "algo": "sha256", "oid": "known", "size": 3}}], 200),
    ],
)
def test_the_server_refuses_what_the_hub_refuses(hub, lines, status):
    hub.create("user/model").objects[hashlib.sha256(b"abc").hexdigest()] = b"abc"
    text = "\n".join(json.dumps(line) for line in [{"key": "header", "value": {"summary": "x"}}, *lines])
    answer = get_session().post(
        f"{hub.endpoint}/api/models/user/model/commit/main",
        content=text.replace("known", hashlib.sha256(b"abc").hexdigest()),
        headers={"Authorization": "Bearer hf_owner"},
    )
    assert answer.status_code == status
    assert len(hub.log("user/model")) == (status == 200)


# ---- code, without the process that would load it (see test_custom_code.py)


def test_code_is_pushed_on_request_and_never_left_dangling(hub, folder, tmp_path):
    push_folder(folder, "user/model", license="mit", with_code=True)
    files = hub.files("user/model")
    sources = flat_code()
    assert set(files) == PUSHED | set(sources) and all(files[name] == source for name, source in sources.items())
    assert len(json.loads(files["config.json"])["auto_map"]) == 5
    assert "trust_remote_code=True" in files["README.md"].decode()
    assert "auto_map" not in json.loads((folder / "config.json").read_text())
    write_code(folder)
    assert "auto_map" in json.loads((folder / "preprocessor_config.json").read_text())
    push_folder(folder, "user/plain", license="mit")
    files = hub.files("user/plain")
    assert set(files) == PUSHED
    assert "auto_map" not in json.loads(files["config.json"]) | json.loads(files["preprocessor_config.json"])
    SegformerForSemanticSegmentation.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert {path.suffix for path in (tmp_path / "again").iterdir()} == {".json", ".safetensors"}


# ---- the command line, and other processes

LOAD = """
import sys, torch, transformers
from PIL import Image
import hf_segformer
model = transformers.AutoModelForSemanticSegmentation.from_pretrained("user/model")
image_processor = transformers.AutoImageProcessor.from_pretrained("user/model")
assert type(model).__module__ == "hf_segformer.modeling_segformer", type(model)
assert type(image_processor).__module__ == "hf_segformer.image_processing_segformer", type(image_processor)
inputs = image_processor(Image.open("image.jpg"), return_tensors="pt")
torch.save(model.eval()(**inputs).logits.detach(), sys.argv[1])
segment = transformers.pipeline("image-segmentation", model="user/model")
assert type(segment.model) is type(model)
assert segment("image.jpg")[0]["mask"].size == (56, 40)
"""


@pytest.fixture
def run_script(tmp_path):
    """Function that runs Python in a fresh process as the owner of the Hub at an endpoint."""

    def run(endpoint, *arguments):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | {
            "HF_HOME": str(tmp_path / "home"),
            "HF_ENDPOINT": endpoint,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": "hf_owner",
            "NO_PROXY": "127.0.0.1,localhost",
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
        }
        options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 300}
        return subprocess.run([sys.executable, *map(str, arguments)], stdin=subprocess.DEVNULL, **options)

    return run


@needs_auto_processor
def test_command_line_then_loading_by_id_then_from_the_cache(folder, tmp_path, run_script):
    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (40, 56, 3), dtype=np.uint8))
    image.save(tmp_path / "image.jpg")
    push = REPOSITORY / "conversion" / "push_to_hub.py"
    with HubServer() as hub:
        done = run_script(
            hub.endpoint, push, folder, "user/model", "--license", "other", "--license_name", "mine", "--private"
        )
        assert done.returncode == 0, done.stderr
        (commit,) = hub.log("user/model")
        assert done.stdout.strip() == f"{hub.endpoint}/user/model/commit/{commit.oid}"
        card = hub.files("user/model")["README.md"].decode()
        (example,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        loaded = run_script(hub.endpoint, "-c", LOAD + example, "online.pt")
        assert loaded.returncode == 0, loaded.stderr
        assert "LABEL_" in loaded.stdout and "(56, 40)" in loaded.stdout
        assert hub.unknown == [] and hub.count("download") == 1
    # Without this the pipeline spends 46 seconds on asking for a chat template.
    cached = run_script(hub.endpoint, "-c", f"import time; time.sleep = lambda seconds: None\n{LOAD}", "cached.pt")
    assert cached.returncode == 0, cached.stderr
    inputs = SegformerImageProcessor.from_pretrained(folder)(Image.open(tmp_path / "image.jpg"), return_tensors="pt")
    expected = SegformerForSemanticSegmentation.from_pretrained(folder).eval()(**inputs).logits
    for name in ("online.pt", "cached.pt"):
        torch.testing.assert_close(torch.load(tmp_path / name), expected, rtol=1e-5, atol=1e-5)


def test_training_publishes_its_result(tmp_path, run_script):
    train = [REPOSITORY / "examples" / "train.py", "--max_steps", 2, "--batch_size", 2, "--crop_size", 64]
    train += ["--num_workers", 0, "--output_dir", tmp_path / "out", "--push_to_hub", "user/scenes"]
    train += ["--dataset", "folder", "--data_root", write_scene_folder(tmp_path / "data", 4, 2), "--image_size", 64]
    train += ["--num_threads", 1]
    refused = example_scripts.run_script(*train, check=False)
    assert refused.returncode and "license" in refused.stderr and not (tmp_path / "out").exists()
    with HubServer() as hub:
        done = run_script(hub.endpoint, *train, "--license", "apache-2.0")
        assert done.returncode == 0, done.stderr[-3000:]
        (commit,) = hub.log("user/scenes")
        assert f"{hub.endpoint}/user/scenes/commit/{commit.oid}" in done.stdout
        files = hub.files("user/scenes")
    assert files["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()
    assert not any(name.startswith("states/") for name in files)
    card, metrics = ModelCard(files["README.md"].decode()), json.loads(files["metrics.json"])
    assert card.data.license == "apache-2.0"
    assert card.data.eval_results[0].metric_value == pytest.approx(metrics["mean_iou"], abs=1e-4)


def test_command_line_asks_for_the_licence(hub, folder, monkeypatch):
    script = runpy.run_path(str(REPOSITORY / "conversion" / "push_to_hub.py"))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(ValueError, match=r"license of the weights is unknown: .* \(--license\)"):
        script["main"]([str(folder), "user/model"])
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: "mit ")
    script["main"]([str(folder), "user/model"])
    assert ModelCard(hub.files("user/model")["README.md"].decode()).data.license == "mit"


def test_encoders_are_pushed_too(hub, tmp_path, tiny_config):
    SegformerModel(tiny_config()).save_pretrained(tmp_path)
    SegformerImageProcessor().save_pretrained(tmp_path)
    push_folder(tmp_path, "user/encoder", license="mit")
    assert "AutoModel.from_pretrained" in hub.files("user/encoder")["README.md"].decode()
    assert HfApi().list_repo_files("user/encoder") == sorted(
        [".gitattributes", "README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
    )
