"""How the next token is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen. The defaults are greedy.

    Attributes:
        temperature: divides the logits; 0 takes the most probable token.
        top_k: only the k most probable tokens; 0 keeps all.
        top_p: only the smallest set of most probable tokens that reaches this probability.
        seed: of the draws.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: names the setting and its value.
        """
        if self.temperature < 0:
            raise ValueError(f"temperature must not be negative, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must not be negative, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")

    def pick(self, logits: Tensor, generator: torch.Generator) -> int:
        """Choose a token.

        Args:
            logits: (vocab,), on any device.
            generator: on the CPU.
        """
        if self.temperature == 0:
            return int(logits.argmax())
        return int(torch.multinomial(self.probabilities(logits).cpu(), 1, generator=generator))

    def pick_rows(self, logits: Tensor, generators: Sequence[torch.Generator]) -> list[int]:
        """Choose a token for each row, with that row's generator.

        Args:
            logits: (rows, vocab), on any device.
            generators: one per row, on the CPU; greedy choice leaves them alone.
        """
        if self.temperature == 0:
            return logits.argmax(-1).tolist()
        # one uniform number a row against the running sum: a stream per row, one pass over all of them
        reached = self.probabilities(logits).double().cpu().cumsum(-1)  # (rows, vocab)
        drawn = torch.cat([torch.rand(1, dtype=torch.float64, generator=own) for own in generators])
        wanted = drawn[:, None] * reached[:, -1:]
        return torch.searchsorted(reached, wanted, right=True)[:, 0].tolist()

    def probabilities(self, logits: Tensor) -> Tensor:
        """(..., vocab) distribution that tokens are drawn from: temperature, then top-k, then top-p."""
        scaled = logits.float() / self.temperature
        if 0 < self.top_k < scaled.shape[-1]:
            least = scaled.topk(self.top_k).values[..., -1:]
            scaled = scaled.masked_fill(scaled < least, -torch.inf)
        if self.top_p < 1:
            ordered, order = scaled.softmax(-1).sort(descending=True, stable=True)
            beyond = ordered.cumsum(-1) - ordered >= self.top_p  # the set without this one suffices
            scaled = scaled.masked_fill(
                torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf
            )
        return scaled.softmax(-1)


def row_generator(seed: int, row: int) -> torch.Generator:
    """A stream of draws that depends on nothing but the seed and the row's number."""
    (mixed,) = np.random.SeedSequence([seed, row]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed >> np.uint64(1)))
