"""All that a score depends on, and a hash that names it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from vlmkit.data.sizes.settings_key import differences, short_hash

NOT_COMPARED = ("checkpoint", "code")
"""What two results may differ in and still be compared: which model, and with which vlmkit."""


@dataclass(frozen=True, kw_only=True)
class EvalSpec:
    """What was asked, how, of which checkpoint (R38).

    All values are plain: numbers, strings, lists and dictionaries.

    Attributes:
        benchmark: name.
        data: fingerprint of the files, number of items, and which of them were asked.
        prompt: how a row becomes a question, and how turns are written.
        media: tokenizer, pixel and frame budgets, and how times are written: the settings of the
            processor, which is the one of training.
        decoding: see `Decoding`.
        scoring: metrics with their extractors.
        judge: model that judges answers, with the hash of its prompt; None: no model does.
        checkpoint: hash of the weights.
        code: version of vlmkit.
    """

    benchmark: str
    data: Mapping[str, Any]
    prompt: Mapping[str, Any]
    media: Mapping[str, Any]
    decoding: Mapping[str, Any]
    scoring: Mapping[str, Any]
    judge: str | None = None
    checkpoint: str = ""
    code: Mapping[str, Any] = field(default_factory=dict)

    @property
    def protocol(self) -> str:
        """A hash of all but checkpoint and code: results with the same one can be compared."""
        kept = {k: v for k, v in asdict(self).items() if k not in NOT_COMPARED}
        return short_hash(_dumped(kept))

    @property
    def name(self) -> str:
        """Benchmark and a hash of everything but the code."""
        kept = {k: v for k, v in asdict(self).items() if k != "code"}
        return f"{self.benchmark}-{short_hash(_dumped(kept))[:12]}"

    def differences(self, other: EvalSpec) -> list[str]:
        """What of the protocol is another in `other`, one line each; none: the two can be compared."""
        ours, theirs = (
            {k: v for k, v in asdict(spec).items() if k not in NOT_COMPARED}
            for spec in (self, other)
        )
        return list(differences(theirs, ours))

    def as_json(self) -> dict[str, Any]:
        """Plain, with its hashes."""
        return {**asdict(self), "protocol": self.protocol, "name": self.name}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EvalSpec:
        """What `as_json` gave."""
        return cls(**{f.name: values[f.name] for f in fields(cls)})


def _dumped(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, ensure_ascii=False)
