# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""Which module may import which: downwards only, and never in a circle."""

import ast
import graphlib
from pathlib import Path

import hf_segformer

PACKAGE = Path(hf_segformer.__file__).parent
# From the ground up. A module may import those of its own layer and of all before it.
LAYERS = [
    ["texts", "files", "json_files", "lettering", "tracing", "configuration_segformer"],
    ["scores.bilinear", "scores.targets"],
    ["engine"],
    ["scores"],
    ["pretrained"],
    ["modeling_segformer"],
    ["processing"],
    ["image_processing_segformer"],
    ["hub_errors"],
    ["runtimes"],
    ["data"],
    ["evaluation.metric_values"],
    ["visualization"],
    ["evaluation", "metrics", "inference", "protocols"],
    ["reporting"],
    ["recipes"],
    ["checkpoints", "adapters"],
    ["hub"],
    ["training"],
    ["export"],
    ["auto", "benchmark", "commands"],
    ["cli", "__main__"],
]


def module_name(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imported_by(path):
    """Modules below the package that a file imports anywhere, also inside functions, but not for types alone."""
    package = list(path.relative_to(PACKAGE).parts[:-1])
    tree = ast.parse(path.read_text(encoding="utf-8"))
    conditions = [node for node in ast.walk(tree) if isinstance(node, ast.If)]
    for_types = [node for node in conditions if "TYPE_CHECKING" in ast.unparse(node.test)]
    skipped = {id(inner) for node in for_types for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "hf_segformer"):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = (node.module or "").split(".") if node.level else node.module.split(".")[1:]
            for alias in node.names:
                yield resolved([*base, *filter(None, module)], alias.name)


def resolved(module, name):
    folder = PACKAGE.joinpath(*module)
    if folder.joinpath(f"{name}.py").exists() or folder.joinpath(name, "__init__.py").exists():
        return ".".join([*module, name])
    return ".".join(module)


def graph():
    files = {module_name(path): path for path in PACKAGE.rglob("*.py")}
    return {name: set(imported_by(path)) - {name} for name, path in files.items()}


def layer_of(module):
    fits = [
        (len(prefix), number)
        for number, layer in enumerate(LAYERS)
        for prefix in layer
        if module == prefix or module.startswith(f"{prefix}.")
    ]
    assert fits, f"{module} is in no layer"
    return max(fits)[1]


def test_no_module_imports_in_a_circle():
    tuple(graphlib.TopologicalSorter(graph()).static_order())  # raises CycleError


def test_no_module_imports_upwards():
    upward = [
        f"{module} imports {target}"
        for module, targets in graph().items()
        for target in targets
        if module != "__init__" and target and layer_of(target) > layer_of(module)
    ]
    assert not upward, "\n".join(sorted(upward))


def test_nothing_imports_examples_or_conversion():
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
        assert not {name.split(".")[0] for name in names if name} & {"examples", "conversion", "tests"}, path
