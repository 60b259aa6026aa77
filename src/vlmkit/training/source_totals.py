"""Loss and token counts of each source, for the log."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vlmkit.batch import StepBatch, VLMBatch


class SourceTotals:
    """Sums by source; on the device, so that nothing waits for it.

    Args:
        names: of the sources, in the order in which batches number them.
        device: of the batches.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names = tuple(names)
        self._last = torch.full((len(self.names),), torch.nan, device=device)
        # likelihood and number of scored tokens; the last row is for samples of unknown source
        self._sums = torch.zeros(len(self.names) + 1, 2, device=device)

    def add(self, micro: VLMBatch, token_nll: Tensor | None) -> None:
        """Add a micro-batch; `token_nll` is (scored_tokens,), in nats."""
        if token_nll is None or micro.source_ids is None or not self.names:
            return
        assert micro.sample_ids is not None
        assert micro.scored_index is not None
        samples = micro.sample_ids.flatten()[micro.scored_index]
        values = torch.stack([token_nll, torch.ones_like(token_nll)], dim=1)
        self._sums.index_add_(0, micro.source_ids[samples] % len(self._sums), values)

    def means(
        self, batch: StepBatch, all_reduce: Callable[[Tensor, str], Tensor]
    ) -> dict[str, Tensor]:
        """Of the step over all ranks: `loss/<source>`, `scored/<source>`, `tokens/<source>`.

        The loss of a source is the mean over its scored tokens, in nats, whatever the objective weighs;
        of a source that did not come up, that of the last step in which it did. The sums start again.
        """
        if not self.names:
            return {}
        tokens = torch.tensor([float(batch.tokens.get(name, 0)) for name in self.names])
        table = torch.cat([self._sums[:-1], tokens[:, None].to(self._sums.device)], dim=1)
        nll, scored, count = all_reduce(table, "sum").unbind(1)
        self._last = torch.where(scored > 0, nll / scored, self._last)
        self._sums.zero_()
        columns = {"loss": self._last, "scored": scored, "tokens": count}
        return {
            f"{key}/{name}": value
            for key, values in columns.items()
            for name, value in zip(self.names, values, strict=True)
        }
