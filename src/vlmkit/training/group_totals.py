"""Loss and number of scored tokens by groups of samples, for the log."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vlmkit.batch import VLMBatch


class GroupTotals:
    """Sums by group, such as source or modality; on the device, so that nothing waits for it.

    Args:
        names: of the groups, in the order in which batches number them.
        device: of the batches.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names = tuple(names)
        self._last = torch.full((len(self.names),), torch.nan, dtype=torch.float32, device=device)
        # likelihood and number of scored tokens; the last row is for samples of no known group
        # float32 whatever the default: bfloat16 counts to 256
        self._sums = torch.zeros(len(self.names) + 1, 2, dtype=torch.float32, device=device)

    def add(
        self,
        micro: VLMBatch,
        groups: Tensor | None,
        token_nll: Tensor | None,
        samples: Tensor | None = None,
    ) -> None:
        """Add a micro-batch.

        Args:
            micro: the batch.
            groups: (samples,) int64, number of the group of each sample, -1 for none.
            token_nll: (scored_tokens,) float32, in nats.
            samples: (scored_tokens,) int64, of token_nll; None: those of all that the batch scores.
        """
        if token_nll is None or groups is None or not self.names:
            return
        if samples is None:
            assert micro.sample_ids is not None
            assert micro.scored_index is not None
            samples = micro.sample_ids.flatten()[micro.scored_index]
        values = torch.stack([token_nll, torch.ones_like(token_nll)], dim=1)
        self._sums.index_add_(0, groups[samples] % len(self._sums), values)

    def means(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Of the step over all ranks: `loss/<group>` and `scored/<group>`; the sums start again.

        The loss of a group is the mean over its scored tokens, in nats, whatever the objective weighs; of a
        group that did not come up, that of the last step in which it did.
        """
        if not self.names:
            return {}
        # a copy: one rank gets back what it gives, and the sums start again below
        nll, scored = sum_over_ranks(self._sums[:-1].clone()).unbind(1)
        self._last = torch.where(scored > 0, nll / scored, self._last)
        self._sums.zero_()
        columns = {"loss": self._last, "scored": scored}
        return {
            f"{key}/{name}": value
            for key, values in columns.items()
            for name, value in zip(self.names, values, strict=True)
        }
