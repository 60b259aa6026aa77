"""Choosing a token for each of many rows, each in its own way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlmkit.models.generation.sampling import History, Sampling


@dataclass(frozen=True, kw_only=True)
class Chooser:
    """How one row chooses, and what it needs for that.

    Attributes:
        sampling: the settings.
        generator: draws for this row, on the CPU.
        history: tokens so far; None where nothing is penalised.
    """

    sampling: Sampling
    generator: torch.Generator
    history: History | None = None


class Choice:
    """Rows with the same filters are served together; a row's token does not depend on the others."""

    def __init__(self, choosers: Sequence[Chooser]) -> None:
        """Group the rows.

        Args:
            choosers: one per row.
        """
        self._choosers = choosers
        self._penalized = [(i, own) for i, own in enumerate(choosers) if own.history is not None]
        groups: defaultdict[Sampling, list[int]] = defaultdict(list)
        for i, own in enumerate(choosers):
            if own.sampling.temperature > 0:
                groups[replace(own.sampling, seed=0)].append(i)
        self._drawn = dict(groups)

    def __call__(self, logits: Tensor) -> list[int]:
        """(rows, vocab), on any device, left as they are -> a token for each row."""
        if self._penalized:
            logits = logits.to(torch.float32, copy=True)
            for i, own in self._penalized:
                assert own.history is not None
                own.history.penalize(logits[i], own.sampling)
        if len(self._drawn) == 1 and len(next(iter(self._drawn.values()))) == len(logits):
            ((sampling, rows),) = self._drawn.items()
            picked = self._draw(logits, sampling, rows)
        else:
            picked = logits.argmax(-1).tolist()
            for sampling, rows in self._drawn.items():
                for row, token in zip(rows, self._draw(logits[rows], sampling, rows), strict=True):
                    picked[row] = token
        for i, own in self._penalized:
            assert own.history is not None
            own.history.add(picked[i])
        return picked

    def _draw(self, logits: Tensor, sampling: Sampling, rows: Sequence[int]) -> list[int]:
        # one uniform number a row against the running sum: a stream per row, one pass over all of them
        reached = sampling.probabilities(logits).double().cpu().cumsum(-1)  # (rows, vocab)
        generators = [self._choosers[row].generator for row in rows]
        drawn = torch.cat([torch.rand(1, dtype=torch.float64, generator=own) for own in generators])
        wanted = drawn[:, None] * reached[:, -1:]
        return torch.searchsorted(reached, wanted, right=True)[:, 0].tolist()
