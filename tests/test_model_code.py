# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The package's code as one flat folder: what it holds and imports, and which imports are refused."""

import ast
import importlib
import re
import sys

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_import_files, get_relative_imports

from hf_segformer.hub.code import flat_code

ENTRIES = ("configuration_segformer", "modeling_segformer", "image_processing_segformer")
# `huggingface_hub` is what `transformers` itself cannot be imported without.
PACKAGES = {"torch", "transformers", "numpy", "PIL", "huggingface_hub"}


@pytest.fixture
def package(tmp_path):
    """Function that writes a package `drawn`; modules that are not given are empty."""

    def write(**modules):
        for name, source in (dict.fromkeys(ENTRIES, "") | modules).items():
            path = tmp_path / "drawn" / f"{name.replace('__', '/', 1)}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        return tmp_path / "drawn"

    return write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flat")
    for name, source in flat_code().items():
        (folder / name).write_bytes(source)
    return folder


def test_names_hold_the_folder():
    assert {f"{entry}.py" for entry in ENTRIES} <= set(flat_code())
    assert {"engine_segformer.py", "engine_seam_segformer.py", "engine_mix_ffn_segformer.py"} <= set(flat_code())
    assert {"scores_label_map_segformer.py", "scores_bilinear_segformer.py"} <= set(flat_code())


def test_all_imports_lead_to_files_of_the_set(folder):
    names = {path.stem for path in folder.iterdir()}
    for path in folder.iterdir():
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        imported = {node.module for node in nodes if node.level}
        assert all(node.level <= 1 for node in nodes) and imported <= names, path
        assert set(get_relative_imports(path)) == imported, path
    reached = set().union(*(get_relative_import_files(folder / f"{entry}.py") for entry in ENTRIES))
    assert reached | {str(folder / f"{entry}.py") for entry in ENTRIES} == set(map(str, folder.iterdir()))


def test_only_what_is_always_there_must_be_installed(folder):
    # What the loader demands before it runs the code; imports in a `try` are not among it.
    needed = set().union(*(get_imports(path) for path in folder.iterdir()))
    assert {"torch", "transformers"} <= needed and needed - sys.stdlib_module_names <= PACKAGES
    assert "import triton" in (folder / "engine_triton_scores_segformer.py").read_text()


def test_nothing_but_the_imports_is_changed(folder):
    from hf_segformer.engine import mix_ffn

    with open(mix_ffn.__file__) as file:
        pairs = list(zip(file, (folder / "engine_mix_ffn_segformer.py").open(), strict=True))
    changed = [(before, after) for before, after in pairs if before != after]
    assert ("from .seam import implements\n", "from .engine_seam_segformer import implements\n") in changed
    assert all(re.match(r"from \.\S+ import", line) for pair in changed for line in pair)
    assert [before.partition("import")[2] for before, _ in changed] == [
        after.partition("import")[2] for _, after in changed
    ]


def test_flat_code_computes_what_the_package_does(package, tmp_path, monkeypatch):
    """Imports between folders, from a folder's own names, over several lines, with other names and in functions."""
    flat = flat_code(
        package(
            modeling_segformer="from .inner import (\n    one,\n    two as zwei,\n)\nresult = one() + zwei\n",
            inner____init__="from .deep import one\ntwo = 2\n",
            inner__deep="def one():\n    from ..plain import value as number\n    return number\n",
            plain="value = 40\n",
        )
    )
    assert set(flat) == {f"{name}.py" for name in ENTRIES} | {
        "inner_segformer.py",
        "inner_deep_segformer.py",
        "plain_segformer.py",
    }
    (tmp_path / "flat_drawn").mkdir()
    for name, source in flat.items():
        (tmp_path / "flat_drawn" / name).write_bytes(source)
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.import_module("flat_drawn.modeling_segformer").result == 42


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("from . import plain", r"modeling_segformer\.py, line 1: only `from \.module import name` can be made flat"),
        ("x = 1\nfrom .. import plain", r"modeling_segformer\.py, line 2: only `from \.module import name`"),
        ("from ..plain import value", r"line 1: only `from \.module import name`"),
        ("from .inner import deep", r"line 1: deep is a module; only names in a module"),
        ("from .missing import value", r"line 1: there is no module missing"),
        ("from .inner.missing import value", r"line 1: there is no module inner\.missing"),
        ("import drawn.plain", r"line 1: only relative imports of the package's modules"),
        ("def f():\n    from drawn.plain import value", r"line 2: only relative imports of the package's modules"),
        (
            "x = 1; from .plain import value",
            r"modeling_segformer\.py: the code loader does not .* plain_segformer: it",
        ),
        ("from .plain \\\n    import value", r"the code loader does not find the import of plain_segformer"),
        ("from  .inner.deep import one", r"the code loader does not find the import of inner_deep_segformer"),
        ("from .plain import value; from .inner import one", r"the code loader does not find .* inner_segformer"),
        ('"""Write\nfrom .other import name\n"""', r"would take a line of a text for an import of other"),
    ],
)
def test_imports_that_cannot_be_made_flat_are_refused(source, message, package):
    files = {"plain": "value = 1\n", "inner____init__": "", "inner__deep": "one = 1\n"}
    with pytest.raises(ValueError, match=message):
        flat_code(package(modeling_segformer=source + "\n", **files))


def test_two_modules_of_one_flat_name_are_refused(package):
    source = "from .inner.deep import one\nfrom .inner_deep_segformer import two\n"
    files = {"inner____init__": "", "inner__deep": "one = 1\n", "inner_deep_segformer": "two = 2\n"}
    with pytest.raises(ValueError, match=r"inner_deep_segformer\.py would be the flat name of both .*deep\.py and"):
        flat_code(package(modeling_segformer=source, **files))
