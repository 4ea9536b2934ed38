# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Pushing through Xet with the real client, and what happens when Xet fails."""

import re
import threading

import pytest

from hf_segformer.hub.push import PushError, push_folder

pytest_plugins = ["hub_fixtures"]
LARGE = ("model.safetensors", "overlays/a.png")


def assert_pushed(hub, folder):
    assert len(hub.log("user/model")) == 1
    files = hub.files("user/model")
    assert all(files[name] == (folder / name).read_bytes() for name in LARGE)
    assert hub.unknown == []


def test_push_through_xet(xet_hub, folder):
    push_folder(folder, "user/model", license="mit")
    assert_pushed(xet_hub, folder)
    assert xet_hub.count("xet-shard") >= 1 and xet_hub.count("lfs-batch") == xet_hub.count("lfs-put") == 0


def hang():
    threading.Event().wait(0.5)  # longer than the client of these tests waits


FAULTS = [
    ("xet-token", {"status": 401}),
    ("xet-token", {"status": 403}),
    ("xet-token", {"status": 404}),
    ("xet-token", {"status": 500}),
    ("xet-token", {"status": 503}),
    ("xet-token", {"status": 200}),  # an answer without a token
    ("xet-token", {"cut_after": 0}),
    ("xet-token", {"before": hang}),
    ("xet-grant", {"status": 500}),
    ("xet-xorb", {"status": 401}),
    ("xet-xorb", {"status": 413}),
    ("xet-xorb", {"cut_after": 1000}),
    ("xet-xorb", {"before": hang}),
    ("xet-shard", {"status": 400}),
    ("xet-shard", {"status": 429}),
    ("xet-shard", {"lose_answer": True}),
    ("xet-shard-v2", {"status": 200}),  # an answer without an end
]
NAMES = [f"{route}-{fault.get('status', next(iter(fault)))}" for route, fault in FAULTS]


@pytest.mark.parametrize("route,fault", FAULTS, ids=NAMES)
def test_failures_of_xet_that_stay_end_in_one_commit_through_lfs(xet_hub, folder, waits, route, fault):
    xet_hub.inject(route, times=1000, **fault)
    with pytest.warns(UserWarning, match="upload through Xet failed, so it is done through LFS: "):
        push_folder(folder, "user/model", license="mit")
    assert_pushed(xet_hub, folder)
    assert 1 <= xet_hub.count(route) <= 3 * len(LARGE)
    assert xet_hub.count("lfs-put") == (0 if "lose_answer" in fault else len(LARGE))  # nothing is sent twice
    assert waits == []


@pytest.mark.parametrize("route", ["xet-token", "xet-xorb", "xet-shard"])
def test_failures_of_xet_that_pass_stay_with_xet(xet_hub, folder, route):
    xet_hub.inject(route, status=503)
    push_folder(folder, "user/model", license="mit")
    assert_pushed(xet_hub, folder)
    assert xet_hub.count("lfs-put") == 0


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "nowhere", "http://no.such.host.invalid"])
def test_store_that_cannot_be_reached(xet_hub, folder, address):
    xet_hub.cas_endpoint = address
    with pytest.warns(UserWarning, match="through Xet failed"):
        push_folder(folder, "user/model", license="mit")
    assert_pushed(xet_hub, folder)


def test_xet_is_not_tried_again_with_the_commit_but_with_the_next_push(xet_hub, folder, waits):
    xet_hub.inject("xet-token", status=403)
    xet_hub.inject("commit", status=503, times=2)
    with pytest.warns(UserWarning, match="through Xet failed"):
        push_folder(folder, "user/model", license="mit")
    assert_pushed(xet_hub, folder)
    assert xet_hub.count("xet-token") == 1 and len(waits) == 2
    push_folder(folder, "user/second", license="mit")
    assert (
        xet_hub.count("xet-shard") >= 1 and xet_hub.files("user/second")[LARGE[0]] == (folder / LARGE[0]).read_bytes()
    )


def test_pull_request_after_a_failure_of_xet(xet_hub, folder):
    xet_hub.create("user/model")
    xet_hub.inject("xet-shard", status=400, times=1000)
    with pytest.warns(UserWarning, match="through Xet failed"):
        info = push_folder(folder, "user/model", license="mit", create_pr=True)
    assert [commit.oid for commit in xet_hub.log("user/model", "refs/pr/1")] == [info.oid]
    assert "refs/pr/2" not in xet_hub.repositories["user/model"].refs


@pytest.mark.filterwarnings("ignore:the upload through Xet failed")
@pytest.mark.parametrize(
    "fault,words",
    [
        ({"status": 503}, "push again.* 503 "),
        ({"status": 403}, "write access.* 403 "),
        ({"cut_after": 0}, "connection"),
    ],
)
def test_both_ways_fail(xet_hub, folder, waits, fault, words):
    for route in ("xet-token", "lfs-batch"):
        xet_hub.inject(route, times=1000, **fault)
    with pytest.raises(PushError, match=words):
        push_folder(folder, "user/model", license="mit")
    assert xet_hub.log("user/model") == [] and xet_hub.count("lfs-batch") <= 12


@pytest.mark.parametrize("token,words", [("hf_wrong", "hf auth login.* 401 "), ("hf_reader", "write access.* 403 ")])
def test_tokens_that_may_not_write(xet_hub, folder, token, words):
    xet_hub.create("user/model")
    with pytest.raises(PushError, match=words):
        push_folder(folder, "user/model", license="mit", token=token)
    assert xet_hub.count("xet-token") == 0


@pytest.mark.filterwarnings("ignore:the upload through Xet failed")
def test_file_that_vanishes_during_the_push(xet_hub, folder):
    xet_hub.inject("xet-token", status=503, times=1000, before=(folder / LARGE[0]).unlink)
    with pytest.raises((PushError, ValueError), match=re.escape(str(folder / LARGE[0]))):
        push_folder(folder, "user/model", license="mit")
    assert xet_hub.log("user/model") == []
