"""How the next token is chosen."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen. The defaults are greedy.

    Logits are changed in this order, which is that of transformers where it has the step: repetition
    penalty, presence and frequency penalty, temperature, top-k, top-p, min-p. Greedy choice comes after
    the penalties.

    Attributes:
        temperature: divides the logits; 0 takes the most probable token.
        top_k: only the k most probable tokens; 0 keeps all.
        top_p: only the smallest set of most probable tokens that reaches this probability.
        min_p: only tokens at least this fraction as probable as the most probable one; 0 keeps all.
        repetition_penalty: divides positive and multiplies negative logits of tokens that stand in the
            prompt or the answer so far, as in transformers; visual placeholders count, as there.
        presence_penalty: taken from the logits of tokens that stand in the answer so far, as in
            OpenAI's interface; the prompt does not count.
        frequency_penalty: the same, times the number of their occurrences in the answer.
        seed: of the draws.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: names the setting and its value.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            whole = field.name in ("top_k", "seed")
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                kind = "a whole number" if whole else "a number"
                raise ValueError(f"{field.name} must be {kind}, got {value!r}")
        for name, fine, words in (
            ("temperature", 0 <= self.temperature < float("inf"), "be finite and not negative"),
            ("top_k", self.top_k >= 0, "not be negative"),
            ("top_p", 0 < self.top_p <= 1, "lie in (0, 1]"),
            ("min_p", 0 <= self.min_p <= 1, "lie in [0, 1]"),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "be above 0"),
            ("presence_penalty", abs(self.presence_penalty) < float("inf"), "be finite"),
            ("frequency_penalty", abs(self.frequency_penalty) < float("inf"), "be finite"),
            ("seed", self.seed >= 0, "not be negative"),
        ):
            if not fine:
                raise ValueError(f"{name} must {words}, got {getattr(self, name)}")

    @property
    def penalizes(self) -> bool:
        """Whether the tokens so far matter."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)

    def probabilities(self, logits: Tensor) -> Tensor:
        """(..., vocab) logits, penalties applied -> the distribution that tokens are drawn from."""
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
        probabilities = scaled.softmax(-1)
        if self.min_p > 0:
            least = self.min_p * probabilities.amax(-1, keepdim=True)
            probabilities = probabilities.masked_fill(probabilities < least, 0)
            probabilities /= probabilities.sum(-1, keepdim=True)
        return probabilities


class History:
    """Which tokens one row has had, as penalties ask for it."""

    def __init__(self, prompt_ids: Tensor, room: int) -> None:
        """Count nothing yet.

        Args:
            prompt_ids: (tokens,) int64.
            room: tokens that may be added.
        """
        seen = prompt_ids.unique()
        self._slots = {token: slot for slot, token in enumerate(seen.tolist())}
        self._ids = torch.cat([seen, seen.new_zeros(room)])
        self._counts = torch.zeros(len(self._ids), device=seen.device)  # in the answer

    def add(self, token: int) -> None:
        """Count a token of the answer."""
        slot = self._slots.setdefault(token, len(self._slots))
        self._ids[slot] = token
        self._counts[slot] += 1

    def penalize(self, logits: Tensor, sampling: Sampling) -> None:
        """Change (vocab,) float32 logits in place."""
        ids, counts = (part[: len(self._slots)] for part in (self._ids, self._counts))
        found = logits[ids]
        penalty = sampling.repetition_penalty
        found = torch.where(found < 0, found * penalty, found / penalty)
        found -= counts * sampling.frequency_penalty
        found -= (counts > 0) * sampling.presence_penalty
        logits[ids] = found


def row_generator(seed: int, row: int) -> torch.Generator:
    """A stream of draws that depends on nothing but the seed and the row's number."""
    (mixed,) = np.random.SeedSequence([seed, row]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed >> np.uint64(1)))
