"""The shape of micro-batches, and rows of examples -> a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vlmkit.batch import Member, StepBatch
from vlmkit.data.collate import collate
from vlmkit.data.order.samples import Skipped
from vlmkit.data.order.work import Limits
from vlmkit.data.processor import Example, Processor


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The shape of micro-batches.

    Attributes:
        row_tokens: capacity of a row.
        row_patches: patches of a row at most; None: whatever comes with the tokens.
        rows_per_micro_batch: rows that the model sees at a time.
        fixed_length: pad all rows to their capacity, so that compiled code sees one shape; otherwise to
            the longest row of the micro-batch.
    """

    row_tokens: int
    row_patches: int | None = None
    rows_per_micro_batch: int = 1
    fixed_length: bool = False

    def __post_init__(self) -> None:
        """Refuse shapes that hold nothing."""
        for name in ("row_tokens", "row_patches", "rows_per_micro_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be positive")

    @property
    def limits(self) -> Limits:
        """What a row holds."""
        return Limits(self.row_tokens, self.row_patches)

    def step_batch(
        self,
        step: int,
        rows: Sequence[Sequence[Example]],
        skipped: Sequence[Skipped],
        processor: Processor,
        sources: Sequence[str],
    ) -> StepBatch:
        """Collate rows into micro-batches."""
        filled = [row for row in rows if row] or [[]]  # without any sample, a row of padding
        examples = [example for row in filled for example in row]
        tokens: Counter[str] = Counter()
        for example in examples:
            tokens[example.source] += example.num_tokens
        together = range(0, len(filled), self.rows_per_micro_batch)
        parts = [filled[i : i + self.rows_per_micro_batch] for i in together]
        return StepBatch(
            step=step,
            micro_batches=tuple(
                collate(
                    part,
                    pad_id=processor.special_tokens.pad_id,
                    merge_size=processor.image.merge_size,
                    row_tokens=self.row_tokens if self.fixed_length else None,
                    sources=sources,
                )
                for part in parts
            ),
            members=tuple(tuple(_member(e) for row in part for e in row) for part in parts),
            tokens=dict(tokens),
            samples=dict(Counter(example.source for example in examples)),
            skipped=tuple(skipped),
        )


def _member(example: Example) -> Member:
    record = example.plan.conversation if example.plan is not None else None
    return Member(
        source=example.source,
        key=record.key if record is not None else 0,
        origin=record.origin if record is not None else "",
    )
