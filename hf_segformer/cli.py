# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The command line: `segformer COMMAND ...`, also as `python -m hf_segformer COMMAND ...`.

Only the standard library is imported before a command is known. However a command ends, `Command.run` is what says so.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
import traceback
from dataclasses import dataclass
from typing import Any

USER_ERROR, FAILURE, INTERRUPTED = 2, 1, 130
# Modules of the extra "train", and the package that each belongs to.
EXTRA = {
    "accelerate": "accelerate",
    "cv2": "opencv-python-headless",
    "datasets": "datasets",
    "evaluate": "evaluate",
    "matplotlib": "matplotlib",
    "peft": "peft",
    "tqdm": "tqdm",
}
# What a user can put right: wrong values, files that are not there or not readable.
_USER_ERRORS = (ValueError, FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: What the user types.
        summary: What it does, for the list of commands.
        example: Arguments of a typical call.
        needs: Modules of the extra "train" that it cannot do without.
        if_interrupted: How to go on after Ctrl-C.
    """

    name: str
    summary: str
    example: str
    needs: tuple[str, ...] = ()
    if_interrupted: str = ""

    def main(self, arguments: list[str] | None = None, prog: str | None = None) -> int | None:
        """Run it, and let errors pass.

        Args:
            arguments: Words after the command's name; those of this process if left out.
            prog: How the command is called, for its help; the name of the script if left out.

        Returns:
            The exit code; None is 0.

        Raises:
            ValueError: A flag, a file or data are not as they must be.
        """
        missing = [EXTRA[module] for module in self.needs if importlib.util.find_spec(module) is None]
        if missing:
            raise ValueError(_install(f"{self.name} needs {', '.join(missing)}"))
        from . import auto  # noqa: F401, the Auto classes build this package's models from here on

        command = importlib.import_module(f"{__package__}.commands.{self.name}")
        return command.main(sys.argv[1:] if arguments is None else arguments, prog)

    def run(self, arguments: list[str] | None = None, prog: str | None = None) -> int:
        """Run it, and report what goes wrong.

        Args:
            arguments: As `main`; `--debug` anywhere shows where an error comes from.
            prog: As `main`.

        Returns:
            The exit code: 2 after an error that the user can put right, 1 where the command failed, 130 after Ctrl-C.
        """
        arguments = list(sys.argv[1:] if arguments is None else arguments)
        debug = "--debug" in arguments
        output: Any = sys.stdout
        output.reconfigure(errors="backslashreplace")  # class names that the terminal cannot show
        try:
            return self.main([word for word in arguments if word != "--debug"], prog) or 0
        except KeyboardInterrupt:
            print(f"interrupted{self.if_interrupted}", file=sys.stderr)
            return INTERRUPTED
        except Exception as error:
            reported = _report(error)
            if reported is None:
                raise  # a mistake in the program
            if debug:
                traceback.print_exc()
            code, message = reported
            print(f"error: {message}", file=sys.stderr)
            return code


def _report(error: Exception) -> tuple[int, str] | None:
    """Exit code and message of an error that is no mistake in the program."""
    message = " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError):
        package = EXTRA.get((error.name or "").partition(".")[0])
        return None if package is None else (USER_ERROR, _install(f"this needs {package}"))
    if isinstance(error, _USER_ERRORS) or _is_push_error(error):
        return USER_ERROR, message
    if isinstance(error, (OSError, FloatingPointError)):  # a full disk, a drive that fails; training that diverged
        return FAILURE, message
    return None


def _is_push_error(error: Exception) -> bool:
    hub = sys.modules.get(f"{__package__}.hub.push")  # without which nothing was pushed
    return hub is not None and isinstance(error, hub.PushError)


def _install(what: str) -> str:
    return f'{what}, which is not installed: pip install "hf_segformer[train]"'


_CAN_RESUME = "; the same command with --resume goes on from the last saved state"
COMMANDS = {
    command.name: command
    for command in (
        Command(
            "train",
            "train a model, on one process or many",
            "--dataset folder --data_root my_pictures --output_dir runs/mine",
            ("accelerate", "datasets", "cv2", "matplotlib", "tqdm"),
            _CAN_RESUME,
        ),
        Command(
            "evaluate",
            "measure mIoU on a data set",
            "--model runs/mine --dataset folder --data_root my_pictures",
            ("accelerate", "datasets", "tqdm"),
        ),
        Command(
            "predict",
            "segment pictures and folders of pictures",
            "photos --model runs/mine --output_dir predictions",
            ("tqdm",),
            "; the same command goes on where it stopped",
        ),
        Command(
            "convert",
            "convert a checkpoint of NVlabs, mmsegmentation, transformers or smp, or back",
            "segformer_mit-b0.pth segformer-b0 --dataset ade20k",
        ),
        Command(
            "push",
            "publish a model folder on the Hub",
            "runs/mine owner/name --license apache-2.0",
        ),
        Command(
            "export",
            "write a model as one file for ONNX Runtime, OpenVINO or torch.export",
            "runs/mine segformer.onnx --format onnx --output labels",
            ("datasets", "tqdm"),
        ),
        Command(
            "data",
            "show what a data set holds: sizes, classes, ignored pixels, overlays",
            "export.zip --output my_pictures",
            ("datasets", "matplotlib", "tqdm"),
        ),
        Command(
            "benchmark",
            "measure speed and memory against the SegFormer of transformers",
            "--variants b0 b2 --output_dir runs/benchmark",
            ("accelerate", "datasets", "matplotlib", "tqdm"),
        ),
    )
}


def usage() -> str:
    """The commands, each with an example."""
    lines = []
    for command in COMMANDS.values():
        lines += [f"  {command.name:<10} {command.summary}", f"{'':13}segformer {command.name} {command.example}"]
    return "\n".join(
        [
            "usage: segformer COMMAND [FLAGS]   (or python -m hf_segformer COMMAND [FLAGS])",
            "",
            *lines,
            "",
            "segformer COMMAND --help shows the flags of a command, --debug where an error comes from, and",
            "segformer --version the version. On several GPUs: accelerate launch -m hf_segformer train [FLAGS]",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command that the first word names; without a word, list the commands.

    Args:
        arguments: Words of the command line; those of this process if left out.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    first = next((word for word in words if word != "--debug"), "--help")
    if first in ("-h", "--help"):
        print(usage())
        return 0
    if first == "--version":
        from . import __version__

        print(f"hf_segformer {__version__}")
        return 0
    if first not in COMMANDS:
        print(f"error: {_unknown(first)}", file=sys.stderr)
        return USER_ERROR
    words.remove(first)
    return COMMANDS[first].run(words, f"segformer {first}")


def _unknown(word: str) -> str:
    kind, known = ("flag", ["--help", "--version", "--debug"]) if word.startswith("-") else ("command", COMMANDS)
    close = difflib.get_close_matches(word, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    where = " before the command" if kind == "flag" else ""
    return f"unknown {kind} {word}{where}{hint} (commands: {', '.join(COMMANDS)})"
