# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Oracles that cannot be asked are skipped with the reason, and tests that ask one are marked."""

import pytest

import oracles
import transformers_mixins

NAMES = list(oracles.PACKAGES)


def reason_of(function, *arguments):
    with pytest.raises(pytest.skip.Exception) as raised:
        function(*arguments)
    return raised.value.msg


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "is not installed; run python tests/oracles.py"),
        (
            "python 3.10\nsmp==1",
            f"was installed by python 3.10, this is {oracles.PYTHON}; run python tests/oracles.py",
        ),
        ("smp==1", f"was installed by an unknown version of Python, this is {oracles.PYTHON}"),
        ("", f"was installed by an unknown version of Python, this is {oracles.PYTHON}"),
        (f"{oracles.PYTHON}0\nsmp==1", f"was installed by {oracles.PYTHON}0, this is"),
    ],
)
def test_the_reason_for_skipping(content, reason, tmp_path, monkeypatch):
    monkeypatch.setattr(oracles, "FOLDER", tmp_path)
    for name in NAMES:
        (tmp_path / name).mkdir()
        if content is not None:
            (tmp_path / name / ".complete").write_text(content)
        assert f"the oracle {name} {reason}" in reason_of(oracles.run_oracle, name, "raise SystemExit(1)")
    assert reason in reason_of(transformers_mixins.load, "test_configuration_common")


def test_one_of_this_python_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(oracles, "FOLDER", tmp_path)
    (tmp_path / "smp").mkdir()
    (tmp_path / "smp" / ".complete").write_text(f"{oracles.PYTHON}\nsmp==1")
    (tmp_path / "smp" / "oracle_of_this_test.py").write_text("ANSWER = 42")
    script = "import sys, oracle_of_this_test; print(oracle_of_this_test.ANSWER, sys.argv[1])"
    assert oracles.run_oracle("smp", script, "asked") == "42 asked\n"


def test_what_another_python_installed_is_installed_again(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(oracles, "FOLDER", tmp_path)
    monkeypatch.setattr(oracles, "PACKAGES", {"smp": ["smp==1"]})
    monkeypatch.setattr(oracles.subprocess, "run", lambda command, check: commands.append(command))
    (tmp_path / "smp").mkdir()
    done = tmp_path / "smp" / ".complete"
    done.write_text("python 3.10\nsmp==1")
    oracles.install()
    assert len(commands) == 1 and done.read_text() == f"{oracles.PYTHON}\nsmp==1"
    oracles.install()
    assert len(commands) == 1


MARKED = """
import pytest

def run_oracle(name, script):
    return 3

@pytest.fixture(scope="module")
def far():
    return run_oracle("smp", "")

@pytest.fixture
def near(far):
    return far

def test_itself():
    assert run_oracle("smp", "") == 3

def test_through_fixtures(near):
    assert near == 3

def test_alone():
    pytest.skip("a reason")
"""


def test_tests_that_ask_an_oracle_are_marked(pytester):
    pytester.makeconftest(oracles.Path(oracles.__file__).with_name("conftest.py").read_text())
    pytester.makeini("[pytest]\nmarkers =\n    oracle: asks\naddopts = -p no:timeout --strict-markers")
    pytester.makepyfile(MARKED)
    asked = pytester.runpytest("-m", "oracle")
    asked.assert_outcomes(passed=2, deselected=1)
    others = pytester.runpytest("-m", "not oracle")
    others.assert_outcomes(skipped=1, deselected=2)
    others.stdout.fnmatch_lines(["skipped 1: a reason"])
