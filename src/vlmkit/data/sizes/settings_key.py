"""Short hashes of settings: equal for parts that were built alike, in any process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any

from vlmkit.data.processor import Processor


def processor_key(processor: Processor) -> str:
    """A hash of all that decides tokens and grids: vocabulary, template, temporal encoding, budgets."""
    return short_hash(repr(processor_keys(processor)))


@lru_cache(maxsize=8)
def processor_keys(processor: Processor) -> dict[str, str]:
    """A hash of each part of a processor, by name.

    Which decoder opens videos, and its limits, do not count: they agree on frames and times, and who
    raises a limit wants to go on from where the run stood.
    """
    settings = {
        name: plain(getattr(processor, name)) for name in ("template", "temporal", "image", "video")
    }
    for _, *state in settings.values():
        _forget(state, "open_reader")
    return {
        "tokenizer": short_hash(processor.tokenizer.to_str()),
        **{name: short_hash(repr(value)) for name, value in settings.items()},
    }


def _forget(value: Any, name: str) -> None:
    for item in value if isinstance(value, list) else []:
        if isinstance(item, dict):
            item.pop(name, None)
        _forget(item, name)


def short_hash(text: str) -> str:
    """Sixteen hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def plain(value: Any) -> Any:
    """Settings of a part as plain values: what pickling it would carry, without addresses of objects."""
    if isinstance(value, str | int | float | bytes | bool | None):
        return value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(repr(plain(item)) for item in value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in sorted(value.items())}
    if isinstance(value, partial):
        return [plain(value.func), plain(value.args), plain(value.keywords)]
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    try:
        made = value.__reduce_ex__(2)
    except TypeError:  # a lock, a file
        return name
    return [name, made if isinstance(made, str) else [plain(part) for part in made[1:3]]]


def without(value: Any, name: str) -> Any:
    """Plain values without what stands under a name, however deep."""
    if isinstance(value, dict):
        return {key: without(item, name) for key, item in value.items() if key != name}
    return [without(item, name) for item in value] if isinstance(value, list) else value


def differences(theirs: Any, ours: Any, path: str = "") -> Iterator[str]:
    """Where two nested dictionaries differ, one line each."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted({*theirs, *ours}):
            yield from differences(theirs.get(key), ours.get(key), f"{path}.{key}".strip("."))
    elif str(theirs) != str(ours):
        yield f"{path} was {theirs}, now it is {ours}"
