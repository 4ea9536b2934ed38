# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The code of the classes as one flat folder, for `trust_remote_code`.

The code loader of `transformers` fetches only files that lie beside one another, and finds them by lines that begin
with `from .name import`. So modules of sub-folders get names that hold their folder's (`engine/mix_ffn.py` becomes
`engine_mix_ffn_segformer.py`), and the lines that import them are rewritten. Nothing else of a file is changed.
"""

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
# What config.json and preprocessor_config.json refer to.
_ENTRIES = ("configuration_segformer", "modeling_segformer", "image_processing_segformer")
# How the loader finds what else to fetch, also in functions and, alas, in texts.
_FOUND_BY_LOADER = re.compile(r"^\s*from\s+\.(\S+)\s+import", flags=re.MULTILINE)

Parts = tuple[str, ...]  # of a module's name below the package


def flat_code(package: Path = _PACKAGE) -> dict[str, bytes]:
    """Modules that models, configuration and image processor consist of, by file name.

    Args:
        package: Folder of the package.

    Raises:
        ValueError: A module imports another in a way that the loader would not find, or two would get one name.
    """
    files: dict[str, bytes] = {}
    modules: dict[str, Parts] = {}
    waiting: list[Parts] = [(entry,) for entry in _ENTRIES]
    while waiting:
        module = waiting.pop()
        name = f"{_flat_name(module)}.py"
        if (other := modules.setdefault(name, module)) != module:
            paths = [str(_file_of(package, given)) for given in (other, module)]
            raise ValueError(f"{name} would be the flat name of both {' and '.join(sorted(paths))}: rename one")
        if name not in files:
            source, imported = _flattened(package, module)
            files[name] = source.encode()
            waiting += imported
    return dict(sorted(files.items()))


def _flattened(package: Path, module: Parts) -> tuple[str, list[Parts]]:
    """Source of a module with its imports rewritten, and the modules that it imports."""
    path = _file_of(package, module)
    source = path.read_text(encoding="utf-8")
    folder = module if path.name == "__init__.py" else module[:-1]
    lines, imported = source.splitlines(keepends=True), []
    for node in _imports(ast.parse(source)):
        place = f"{path}, line {node.lineno}"
        if isinstance(node, ast.Import) or not node.level:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            if package.name in {name.partition(".")[0] for name in names}:
                raise ValueError(f"{place}: only relative imports of the package's modules can be made flat")
            continue
        if not node.module or node.level > len(folder) + 1:
            raise ValueError(f"{place}: only `from .module import name` can be made flat")
        target = (*folder[: len(folder) - node.level + 1], *node.module.split("."))
        _check_target(package, target, [alias.name for alias in node.names], place)
        before, line = "." * node.level + node.module, lines[node.lineno - 1]
        lines[node.lineno - 1] = line.replace(f"from {before} import", f"from .{_flat_name(target)} import", 1)
        imported.append(target)
    source = "".join(lines)
    found, wanted = set(_FOUND_BY_LOADER.findall(source)), {_flat_name(target) for target in imported}
    if missed := sorted(wanted - found):
        raise ValueError(
            f"{path}: the code loader does not find the import of {missed[0]}: it looks for lines that begin with "
            "`from .module import`"
        )
    if taken := sorted(found - wanted):
        raise ValueError(f"{path}: the code loader would take a line of a text for an import of {taken[0]}")
    return source, imported


def _check_target(package: Path, target: Parts, names: list[str], place: str) -> None:
    path = _file_of(package, target)
    if not path.exists():
        raise ValueError(f"{place}: there is no module {'.'.join(target)}")
    modules = [name for name in names if path.name == "__init__.py" and _file_of(package, (*target, name)).exists()]
    if modules:
        raise ValueError(f"{place}: {modules[0]} is a module; only names in a module can be imported in flat code")


def _imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node


def _file_of(package: Path, module: Parts) -> Path:
    path = package.joinpath(*module)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _flat_name(module: Sequence[str]) -> str:
    name = "_".join(module)
    return name if name.endswith("_segformer") else f"{name}_segformer"
