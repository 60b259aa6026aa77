"""Samples that were left out: counted by reason, written to a file, and limited in number."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from vlmkit.data.order.samples import Skipped
from vlmkit.errors import DataError, Reason


class TooManySkippedError(DataError):
    """More samples were left out than the caps allow; the message names source, counts and file."""


class SkipLog:
    """Counts what is left out of training, and ends the run when it is too much.

    Args:
        max_share: of a source's samples that may be left out, once `min_seen` of them came up.
        min_seen: samples of a source before its share is judged.
        max_in_a_row: samples of a source left out over steps that used none of it.
        file: where each is written, one JSON object per line; None writes nothing.
    """

    def __init__(
        self,
        max_share: float = 0.05,
        min_seen: int = 200,
        max_in_a_row: int = 100,
        file: str | Path | None = None,
    ) -> None:
        if not 0 <= max_share <= 1:
            raise ValueError(f"max_share is {max_share}; it must lie between 0 and 1")
        self.max_share, self.min_seen, self.max_in_a_row = max_share, min_seen, max_in_a_row
        self.file = None if file is None else Path(file)
        self.seen: Counter[str] = Counter()
        self.counts: Counter[tuple[str, Reason]] = Counter()
        self._in_a_row: Counter[str] = Counter()

    def add(self, used: dict[str, int], skipped: Iterable[Skipped]) -> None:
        """Count a step.

        Args:
            used: number of samples used, by source.
            skipped: those that were not.

        Raises:
            TooManySkippedError: a cap is exceeded.
        """
        left_out = list(skipped)
        if left_out and self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as lines:
                for item in left_out:
                    lines.write(json.dumps(asdict(item), ensure_ascii=False) + "\n")
        for source, count in used.items():
            self.seen[source] += count
        for item in left_out:
            self.seen[item.source] += 1
            self.counts[item.source, item.code] += 1
            self._in_a_row[item.source] += 1
        for source in [source for source, count in used.items() if count]:
            self._in_a_row[source] = 0
        for source in {item.source for item in left_out}:
            self._check(source, next(i for i in reversed(left_out) if i.source == source))

    def skipped_of(self, source: str) -> int:
        """Samples of a source that were left out."""
        return sum(count for (name, _), count in self.counts.items() if name == source)

    def summary(self) -> str:
        """Counts by source and reason, in one line."""
        found = (f"{source}: {n} {code}" for (source, code), n in sorted(self.counts.items()))
        return ", ".join(found) or "none"

    def _check(self, source: str, last: Skipped) -> None:
        seen, skipped, row = self.seen[source], self.skipped_of(source), self._in_a_row[source]
        if row > self.max_in_a_row:
            what = f"{row} samples in a row"
        elif seen >= self.min_seen and skipped > self.max_share * seen:
            what = f"{skipped} of {seen} samples"
        else:
            return
        listed = f"; all are listed in {self.file}" if self.file else ""
        raise TooManySkippedError(
            f"{source}: {what} had to be left out ({self.summary()}). The last: {last.message}{listed}. "
            "Mend the data, or raise data.skips.max_share or data.skips.max_in_a_row",
            last.code,
        )

    def state_dict(self) -> dict[str, object]:
        """Counts so far."""
        return {
            "seen": dict(self.seen),
            "in_a_row": dict(self._in_a_row),
            "counts": [[source, str(code), n] for (source, code), n in self.counts.items()],
        }

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on counting."""
        self.seen = Counter(state["seen"])  # type: ignore[call-overload]
        self._in_a_row = Counter(state["in_a_row"])  # type: ignore[call-overload]
        self.counts = Counter(
            {(source, Reason(code)): n for source, code, n in state["counts"]}  # type: ignore[attr-defined]
        )
