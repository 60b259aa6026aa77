"""Which parts were called, by class: what is configured and what runs are two things."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from vlmkit.attention.auto import AutoAttention
from vlmkit.attention.sdpa import SDPAAttention
from vlmkit.attention.varlen import VarlenAttention
from vlmkit.errors import ConfigError

CHOOSES_FROM: Mapping[type, tuple[type, ...]] = {AutoAttention: (VarlenAttention, SDPAAttention)}
"""Back ends that call others: the others are what is counted."""

KERNELS = re.compile(
    r"attention|attn|flash|grouped_mm|fused_(adam|sgd|adagrad|lion)|liger|triton|quack|c10d::", re.I
)


class CallCounter:
    """Counts calls by class while it is installed: `with CallCounter(...) as counter`.

    Parts that are modules are counted by forward hooks. Others have the `__call__` of their class replaced
    for as long as it takes, so that those made during a step count too. Within a compiled graph a call
    counts once, when the graph is made.
    """

    def __init__(self, modules: Iterable[nn.Module], classes: Iterable[type]) -> None:
        """Say what to watch.

        Args:
            modules: these objects.
            classes: all objects of these classes.
        """
        self.calls: Counter[str] = Counter()
        self._modules, self._classes = list(modules), list(dict.fromkeys(classes))
        self._undo: list[Callable[[], Any]] = []

    def __enter__(self) -> CallCounter:
        for module in self._modules:
            self._undo.append(module.register_forward_hook(self._count).remove)
        for cls in self._classes:
            self._undo.append(_replace_call(cls, self.calls))
        return self

    def __exit__(self, *error: object) -> None:
        while self._undo:
            self._undo.pop()()

    def _count(self, module: nn.Module, *_: Any) -> None:
        self.calls[type(module).__name__] += 1


class KernelCounter:
    """Counts torch's operations with telling names: attention kernels, grouped matmul, fused optimisers.

    They are seen where they are dispatched, in compiled graphs too. Steps aside for another profiler.
    """

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}
        self.note: str | None = None
        self._profiler: torch.profiler.profile | None = None

    def __enter__(self) -> KernelCounter:
        if torch.autograd._profiler_enabled():
            self.note = "not recorded: another profiler was at work"
            return self
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it writes to the terminal otherwise
        self._profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
        self._profiler.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._profiler is None:
            return
        self._profiler.__exit__(None, None, None)
        found = {e.key: e.count for e in self._profiler.key_averages() if KERNELS.search(e.key)}
        self.calls = dict(sorted(found.items()))
        self._profiler = None


def held(root: nn.Module, attribute: str) -> dict[str, tuple[type, ...]]:
    """Classes of the parts that modules hold under a name, and what each of them may call.

    Args:
        root: it and all modules below it.
        attribute: such as `attention` or `kernel`; parts that are modules themselves do not count.
    """
    classes: dict[str, tuple[type, ...]] = {}
    for module in root.modules():
        part = vars(module).get(attribute)
        while (
            inner := getattr(part, attribute, None)
        ) is not None:  # a wrapper, as compiling puts one
            part = inner
        if callable(part):
            classes[type(part).__name__] = CHOOSES_FROM.get(type(part), (type(part),))
    return classes


def check_asked_for(asked: Mapping[str, Collection[str]], called: Mapping[str, int]) -> None:
    """Refuse a switch that changed nothing.

    Args:
        asked: of each switch the names of which at least one must have been called.
        called: number of calls by name.

    Raises:
        ConfigError: names the switch, and what ran instead.
    """
    for switch, names in asked.items():
        if not any(called.get(name, 0) for name in names):
            ran = ", ".join(f"{name} {count} times" for name, count in called.items() if count)
            raise ConfigError(
                f"{switch} was asked for, but the first step never called {' or '.join(names)}. It called "
                f"{ran or 'nothing that is counted'}. Take the switch out, or find what bypasses it"
            )


def _replace_call(cls: type, calls: Counter[str]) -> Callable[[], None]:
    original: Any = cls.__call__
    name = cls.__name__

    # dynamo runs this while it traces, and leaves it out of the graph
    @torch.compiler.assume_constant_result
    def count() -> int:
        calls[name] += 1
        return 0

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        count()
        return original(self, *args, **kwargs)

    inherited = "__call__" not in vars(cls)
    cls.__call__ = counted  # type: ignore[operator, method-assign]

    def undo() -> None:
        if inherited:
            del cls.__call__
        else:
            cls.__call__ = original  # type: ignore[operator, method-assign]

    return undo
