# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""The one seam between what is computed and how.

`@accelerated` on a method or function of the textbook tries what the engine registered for it, in order, and otherwise
runs what is written there. An implementation takes the same arguments and is registered by `@implements` with a
function of `eligibility` that says why it must not be used this time. Nothing is decided anywhere else.
"""

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import nn
from transformers import modeling_layers

TEXTBOOK = "textbook"
P = ParamSpec("P")
R = TypeVar("R")


class Implementation(NamedTuple):
    """Another way to compute what a textbook function computes."""

    name: str
    run: Callable
    refuses: Callable[..., str]  # of the same arguments; what stands in the way, "" where nothing does


@dataclass
class Choice:
    """What happened in one call of an accelerated function.

    Args:
        function: Name in the textbook, such as "SegformerMixFFN.forward".
        module: Name of the module in the model that was explained, "" for functions.
        ran: Name of the implementation, or "textbook".
        refused: Name of each implementation that was tried before, and what stood in its way.
        notes: What the implementation says of its own choices, such as a GPU kernel's timing.
    """

    function: str
    module: str = ""
    ran: str = TEXTBOOK
    refused: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.module or self.function}: {self.ran}"]
        lines += [f"  not {name}: {reason}" for name, reason in self.refused.items()]
        return "\n".join(lines + [f"  {note}" for note in self.notes])


class Choices(list[Choice]):
    """The calls of accelerated functions, in order; as text, equal ones together."""

    def __str__(self) -> str:
        groups: dict[tuple, list[Choice]] = {}
        for choice in self:
            alike = choice.function, choice.ran, tuple(choice.refused.items()), tuple(choice.notes)
            groups.setdefault(alike, []).append(choice)
        lines = []
        for (function, ran, refused, notes), group in groups.items():
            lines.append(f"{function} ({len(group)}x, {_named(group)}): {ran}")
            lines += [f"    not {name}: {reason}" for name, reason in refused]
            lines += [f"    {note}" for note in notes]
        return "\n".join(lines)


def _named(group: list[Choice]) -> str:
    names = [choice.module for choice in group if choice.module] or ["no module"]
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


class Record(NamedTuple):
    """What one `record` block collects."""

    choices: Choices
    names: dict[nn.Module, str]


_implementations: dict[str, list[Implementation]] = {}
# Where `transformers` has what it puts around each layer's `forward` for gradient checkpointing.
_CHECKPOINTING = vars(modeling_layers)


def _enabled_from(environment: str) -> bool:
    if environment not in ("on", "off"):
        raise ValueError(f'the environment variable HF_SEGFORMER_ENGINE must be "on" or "off", got {environment!r}')
    return environment == "on"


# Plain names of the module: a compiler guards on them, and compiles anew when one changes.
_starts_enabled = _enabled = _enabled_from(os.environ.get("HF_SEGFORMER_ENGINE", "on"))
_records: tuple["Record", ...] = ()  # one for each `record` block that is open, in whichever thread
_running = threading.local()  # its `choices`: the accelerated functions that this thread is in, if they are recorded
_blocks = 0
_repeating: list[bool] = []  # as which of the two backward passes compute a layer again at this moment
_lock = threading.Lock()


def accelerated(textbook: Callable[P, R]) -> Callable[P, R]:
    """Let the engine compute a textbook function another way, or go around it, to the same result up to rounding.

    Args:
        textbook: A method of a module, or a function. Methods that a subclass inherits are left as they are written:
            the subclass may have changed what they call.
    """
    name = textbook.__qualname__
    owner = _owner(name)

    @functools.wraps(textbook)
    def choose(*arguments: Any, **keywords: Any) -> Any:
        if _records:
            return _run_and_record(name, textbook, arguments, keywords)
        if not _enabled:
            return textbook(*arguments, **keywords)
        if not owner or is_own(arguments[0], name):
            for implementation in _implementations.get(name, ()):
                if not implementation.refuses(*arguments, **keywords):
                    return implementation.run(*arguments, **keywords)
        return textbook(*arguments, **keywords)

    # `functools.wraps` copies these to whatever somebody puts around the method: only this function names itself.
    choose.accelerated_name, choose.accelerated_method = name, choose  # type: ignore[attr-defined]
    return choose


def _owner(name: str) -> str:
    """Class of the method with that qualified name, "" for functions."""
    owner = name.rpartition(".")[0]
    return "" if owner.endswith("<locals>") else owner


def implements(name: str, unless: Callable[..., str]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register a function as one that computes what the textbook function `name` does; first registered, first tried.

    Args:
        name: Qualified name of the textbook function.
        unless: Function of the same arguments that returns what stands in the way, "" where nothing does.
    """

    def register(run: Callable[P, R]) -> Callable[P, R]:
        _implementations.setdefault(name, []).append(Implementation(run.__name__, run, unless))
        return run

    return register


def is_own(module: object, name: str) -> bool:
    """Whether the class of `module` itself, not one that it is derived from, has the accelerated method `name`.

    Args:
        module: Any module, or what stands in the place of one.
        name: Qualified name of a method, such as "SegformerMixFFN.forward".
    """
    method: Any = class_of(module).__dict__.get(name.rpartition(".")[2])
    if getattr(method, "accelerated_name", None) != name:
        return False
    while method is not method.accelerated_method and method.__globals__ is _CHECKPOINTING:
        method = method.__wrapped__
    return method is method.accelerated_method


def _not_own(module: object, name: str) -> str:
    found, (owner, _, method) = class_of(module), name.rpartition(".")
    if method in vars(found) and found.__name__ == owner:
        return f"the {method} of the class {owner} was replaced"
    return f"{found.__name__} of {found.__module__} is not the textbook's {owner}"


def class_of(module: object) -> type:
    """The class of a module, also of one that `torch.export` works with."""
    # For modules of a network that holds one of them under two names it makes stand-ins, which share all attributes
    # but have a class of their own.
    bases = type(module).__bases__
    return bases[1] if bases[0].__name__ == "AttrProxy" else type(module)


def is_enabled() -> bool:
    """Whether accelerated functions look for another way at all."""
    return _enabled


@contextlib.contextmanager
def off() -> Iterator[None]:
    """Compute everything as the textbook writes it, in the whole process, as long as the block lasts.

    Like the flags of `torch.backends` it holds for all threads; a compiled model is compiled anew. In a layer with
    gradient checkpointing (`gradient_checkpointing_enable`) the backward pass computes again what its forward pass
    computed, wherever it is called; a `torch.utils.checkpoint.checkpoint` of your own must lie in the block with both.
    The environment variable `HF_SEGFORMER_ENGINE=off` does the same from the start.
    """
    _count_blocks(1)
    try:
        yield
    finally:
        _count_blocks(-1)


def _count_blocks(change: int) -> None:
    # Counted, so that blocks of several threads may overlap.
    global _blocks
    with contextlib.nullcontext() if torch.compiler.is_compiling() else _lock:  # a compiler does not know locks
        _blocks += change
        _update()


def _update() -> None:
    global _enabled
    _enabled = _repeating[-1] if _repeating else _starts_enabled and not _blocks


def remembering(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, to be computed now and again later: later with the engine on or off as it is now.

    Args:
        function: What gradient checkpointing repeats in the backward pass.
    """
    if torch.compiler.is_compiling():  # a compiled backward pass repeats what was compiled
        return function
    enabled = _enabled

    @functools.wraps(function)
    def run(*arguments: P.args, **keywords: P.kwargs) -> R:
        if _enabled == enabled:
            return function(*arguments, **keywords)
        with _lock:
            _repeating.append(enabled)
            _update()
        try:
            return function(*arguments, **keywords)
        finally:
            with _lock:
                _repeating.remove(enabled)
                _update()

    return run


@contextlib.contextmanager
def record(model: nn.Module | None = None) -> Iterator[Choices]:
    """Collect what accelerated functions do in a block, whatever is called there; not for compiled models.

    Args:
        model: Its modules are named in what is collected.
    """
    global _records
    opened = Record(Choices(), {} if model is None else {module: name for name, module in model.named_modules()})
    with _lock:
        _records = (*_records, opened)
    try:
        yield opened.choices
    finally:
        with _lock:
            _records = tuple(other for other in _records if other is not opened)


def explain(model: nn.Module, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> Choices:
    """Call a model and say, for each module and function that can be accelerated, what ran and why nothing faster.

    Args:
        model: Any SegFormer or a model that holds one, in the mode (training or evaluation, gradients or none) that is
            to be explained.
        pixel_values: (B, num_channels, H, W).
        labels: Passed on where they are given.

    Returns:
        A list of `Choice`, to be printed: equal ones stand together.

    Raises:
        ValueError: The model or a part of it is compiled, or it was traced or exported, so that no Python runs any
            more, or it holds no SegFormer.
    """
    for name, module in model.named_modules():
        if (
            isinstance(module, torch._dynamo.OptimizedModule)
            or getattr(module, "_compiled_call_impl", None) is not None
        ):
            part = f"model.{name}" if name else "model"
            raise ValueError(
                f"{part} must not be compiled, or nothing of its Python runs: explain it before torch.compile"
            )
    with record(model) as choices:
        model(pixel_values, **({} if labels is None else {"labels": labels}))
    if not choices:
        raise ValueError(
            f"model must hold a SegFormer of this package whose Python runs, not a traced or exported one: in this "
            f"{type(model).__name__} no function was called that can be accelerated"
        )
    return choices


def note(text: str) -> None:
    """Add to what `explain` says of the accelerated function that is running.

    Args:
        text: A choice that its implementation made, in words.
    """
    if _records and getattr(_running, "choices", None):
        _running.choices[-1].notes.append(text)


def _run_and_record(name: str, textbook: Callable, arguments: tuple, keywords: dict) -> Any:
    module = arguments[0] if arguments and isinstance(arguments[0], nn.Module) else None
    choice = Choice(name, _name_of(module))
    for opened in _records:
        opened.choices.append(choice)
    run, owner = textbook, _owner(name)
    for implementation in _implementations.get(name, ()):
        if not _enabled:
            refusal = "the engine is off"
        elif owner and not is_own(module, name):
            refusal = _not_own(module, name)
        else:
            refusal = implementation.refuses(*arguments, **keywords)
        if not refusal:
            run, choice.ran = implementation.run, implementation.name
            break
        choice.refused[implementation.name] = refusal
    _running.choices = [*getattr(_running, "choices", []), choice]
    try:
        return run(*arguments, **keywords)
    finally:
        _running.choices = _running.choices[:-1]


def _name_of(module: nn.Module | None) -> str:
    if module is None:
        return ""
    module = module.__dict__.get("replica_of", module)
    return next((opened.names[module] for opened in reversed(_records) if module in opened.names), "")
