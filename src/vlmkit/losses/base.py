"""What a loss returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from vlmkit.batch import VLMBatch


@dataclass(frozen=True, kw_only=True)
class LossOutput:
    """A weighted sum and its weight. Means of unequal micro-batches are not the mean: divide once."""

    numerator: Tensor  # () with gradient; everything that is minimised, the z-loss too
    denominator: Tensor  # () float32
    token_nll: Tensor | None = (
        None  # (scored_tokens,) float32, detached, without z-loss, for the log
    )
    z_numerator: Tensor | None = (
        None  # () detached: the z-loss within the numerator; None: no z-loss
    )
    sample_ids: Tensor | None = (
        None  # (scored_tokens,) int64, of token_nll; None: those of all that the batch scores
    )


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """How well each scored token was predicted."""

    nll: Tensor  # (scored_tokens,) float32, in nats
    correct: Tensor  # (scored_tokens,) bool, the most probable token is the right one
    sample_ids: Tensor  # (scored_tokens,) int64


class Loss(nn.Module, ABC):
    """Hidden states and batch -> what to minimise."""

    @abstractmethod
    def forward(self, hidden: Tensor, head_weight: Tensor, batch: VLMBatch) -> LossOutput:
        """Weighted sum over scored tokens, and the sum of the weights.

        Args:
            hidden: (batch, seq, dim), after the final norm.
            head_weight: (vocab, dim).
            batch: holds labels, where they are, and which sample they belong to.
        """

    @abstractmethod
    def denominator(self, batch: VLMBatch) -> Tensor:
        """The sum of the weights alone, () float32, known before any forward pass."""

    @abstractmethod
    def score(self, hidden: Tensor, head_weight: Tensor, batch: VLMBatch) -> TokenScores:
        """Per-token likelihood and correctness, without gradient."""
