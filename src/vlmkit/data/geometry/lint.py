"""Which space the boxes and points of a dataset are written in, and which of them cannot be.

Mixing coordinate systems is silent: training runs, and boxes come out shifted. `LintReport` reads
conversations one by one and keeps counts only. It weighs what a source may be written in: 0 to 1000
(Qwen3-VL), 0 to 1, pixels of the source or of the resized picture (Qwen2.5-VL), and pixels with y before
x (see `likely_space`). Where the numbers do not decide, the verdict says what is left.

What no numbers can tell: 0 to 1000 with y before x, which looks like 0 to 1000.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from vlmkit.data.geometry.likely_space import (
    PUBLISHED_RESIZING,
    Candidate,
    Kind,
    Resizing,
    Size,
    Verdict,
    Weighing,
    candidates_for,
)
from vlmkit.data.geometry.shapes import Box, Point, Relative1000
from vlmkit.data.geometry.written_shapes import WrittenShape, shapes_in
from vlmkit.data.record import Conversation, GroundingPart, ImagePart, Message, TextPart
from vlmkit.errors import DataError

MAX_EXAMPLES = 3
"""Examples that are kept of each finding."""


class Finding(StrEnum):
    """What may be wrong with a shape."""

    MALFORMED = "not two or four numbers"
    NO_PICTURE = "no picture in the conversation"
    INVERTED = "second corner before the first (perhaps x, y, width, height)"
    ZERO_AREA = "no area"
    NEGATIVE = "negative"
    WITHIN_1 = "within 0 to 1"
    FRACTIONAL = "not whole numbers"
    BEYOND_1000 = "beyond 1000"
    SWAPPED = "fits the picture only with x and y swapped"
    IMPOSSIBLE = "fits no known space"
    DUPLICATE = "twice in one turn"
    Y_FIRST_KEY = "box_2d, a key under which others write y before x, 0 to 1000"


_TELLING = (Finding.BEYOND_1000, Finding.WITHIN_1, Finding.IMPOSSIBLE, Finding.INVERTED)
_ALWAYS_SHOWN = (Candidate(Kind.RELATIVE_1000), Candidate(Kind.SOURCE_PIXELS))


@dataclass
class SourceReport:
    """Counts of one source.

    Attributes:
        weighing: of the spaces it may be written in.
        num_samples: conversations, with shapes or without.
        num_shapes: boxes and points, well-formed.
        num_bare: of these, four numbers in brackets without a key.
        num_at_1000: of these, those that end at 999 or 1000.
        num_unsized: of these, those in conversations whose pictures' sizes are not known.
        findings: how many shapes have which.
        examples: the first few of each finding.
    """

    weighing: Weighing
    num_samples: int = 0
    num_shapes: int = 0
    num_bare: int = 0
    num_at_1000: int = 0
    num_unsized: int = 0
    findings: Counter[Finding] = field(default_factory=Counter)
    examples: dict[Finding, list[str]] = field(default_factory=dict)

    @property
    def is_clean(self) -> bool:
        """Whether nothing was found and 0 to 1000 is not excluded."""
        return not self.findings and self.verdict().may_be_relative

    def add_turn(self, shapes: Iterable[WrittenShape], sizes: Sequence[Size], origin: str) -> None:
        """Count the shapes of one turn. Without `sizes`, only what needs none is looked at."""
        seen = set()
        for shape in shapes:
            findings = [] if shape not in seen or shape.is_bare else [Finding.DUPLICATE]
            seen.add(shape)
            if shape.is_malformed:
                findings.append(Finding.MALFORMED)
            else:
                self.num_shapes += 1
                self.num_bare += shape.is_bare
                findings += self._weigh(shape, sizes)
            self.found(findings, f"{origin}: {shape}" + _pictures(sizes))

    def found(self, findings: Iterable[Finding], example: str) -> None:
        """Count findings and keep an example of the first few."""
        for finding in findings:
            self.findings[finding] += 1
            kept = self.examples.setdefault(finding, [])
            if len(kept) < MAX_EXAMPLES:
                kept.append(example)

    def _weigh(self, shape: WrittenShape, sizes: Sequence[Size]) -> Iterator[Finding]:
        numbers = shape.numbers
        first, last = numbers[:2], numbers[-2:]
        far = max(first[0], last[0]), max(first[1], last[1])
        self.num_at_1000 += max(far) in (999, 1000)
        if shape.form == "box_2d":
            yield Finding.Y_FIRST_KEY
        if len(numbers) == 4 and (last[0] < first[0] or last[1] < first[1]):
            yield Finding.INVERTED
        elif len(numbers) == 4 and (last[0] == first[0] or last[1] == first[1]):
            yield Finding.ZERO_AREA
        if min(numbers) >= 0 and 0 < max(numbers) <= 1:
            yield Finding.WITHIN_1
        elif any(n % 1 for n in numbers if math.isfinite(n)):
            yield Finding.FRACTIONAL
        if max(numbers) > 1000:
            yield Finding.BEYOND_1000
        if min(numbers) < 0:
            yield Finding.NEGATIVE
        elif not sizes:
            self.num_unsized += 1
        else:
            fitting = self.weighing.add(far, sizes)
            if not fitting:
                yield Finding.IMPOSSIBLE
            elif all(candidate.swapped for candidate in fitting):
                yield Finding.SWAPPED

    def verdict(self) -> Verdict:
        """The space that the source is most likely written in."""
        if not self.num_shapes:
            return Verdict(Kind.UNKNOWN, evidence="no boxes or points")
        if 2 * self.findings[Finding.IMPOSSIBLE] > self.num_shapes:
            return Verdict(Kind.UNKNOWN, evidence=self._evidence())
        return self.weighing.verdict(self._evidence())

    def _evidence(self) -> str:
        said = [
            f"{_share(self.findings[finding], self.num_shapes)} {finding.value}"
            for finding in _TELLING
            if self.findings[finding]
        ]
        left, num_weighed = self.weighing.left(), self.weighing.num_shapes
        for candidate, tally in self.weighing.tallies.items() if num_weighed else ():
            if candidate in left or candidate in _ALWAYS_SHOWN:
                held = _share(tally.num_fits, num_weighed)
                said.append(f"{held} within {candidate.full_name}, up to {tally.reach:.2f} of it")
        if self.num_at_1000:
            said.append(f"{_share(self.num_at_1000, self.num_shapes)} end at 999 or 1000")
        if self.num_unsized:
            said.append(f"{_share(self.num_unsized, self.num_shapes)} in pictures of unknown size")
        if 2 * self.num_bare > self.num_shapes:
            said.append("most are bare lists of four numbers, perhaps no boxes")
        return "; ".join(said)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Turns with their pictures' sizes, for data that are not conversations yet.

    `sizes` is empty without pictures, and None if their sizes are not known.
    """

    texts: Sequence[str]
    sizes: Sequence[Size] | None
    source: str = ""
    origin: str = ""


@dataclass
class LintReport:
    """Findings by source, over any number of samples in constant memory.

    Attributes:
        resizing: what pictures may have been resized to; name your own bounds if they are others.
        sources: one report each.
    """

    resizing: Sequence[Resizing] = PUBLISHED_RESIZING
    sources: dict[str, SourceReport] = field(default_factory=dict)

    @classmethod
    def of(cls, samples: Iterable[Conversation | Sample]) -> LintReport:
        """The report of all samples, with the published bounds."""
        report = cls()
        for sample in samples:
            report.add(sample)
        return report

    @property
    def is_clean(self) -> bool:
        """Whether no source has findings or is certainly written in something else than 0 to 1000."""
        return all(source.is_clean for source in self.sources.values())

    def add(self, sample: Conversation | Sample) -> None:
        """Read one sample; pictures' headers are read only where there are shapes."""
        if isinstance(sample, Sample):
            turns = [list(shapes_in(text)) for text in sample.texts]
            has_media = sample.sizes is None or len(sample.sizes) > 0
        else:
            turns = [list(_shapes_of(message)) for message in sample.messages]
            has_media = any(not isinstance(p, TextPart | GroundingPart) for p in sample.parts)
        if sample.source not in self.sources:
            self.sources[sample.source] = SourceReport(Weighing(candidates_for(self.resizing)))
        report = self.sources[sample.source]
        report.num_samples += 1
        if not has_media:  # four numbers are then just four numbers
            for shape in (s for turn in turns for s in turn if not s.is_bare):
                report.found([Finding.NO_PICTURE], f"{sample.origin}: {shape}")
        elif any(turns):
            sizes = _sizes_of(sample)
            for turn in turns:
                report.add_turn(turn, sizes, sample.origin)

    def table(self) -> Table:
        """One row per source: the verdict, then the findings with an example each."""
        table = Table(title="coordinates by source", box=SIMPLE)
        table.add_column("source", no_wrap=True)
        table.add_column("samples", justify="right")
        table.add_column("shapes", justify="right")
        table.add_column("most likely space", min_width=14)
        table.add_column("evidence and findings", ratio=1)
        for name, source in sorted(self.sources.items()):
            verdict = source.verdict()
            said = [verdict.evidence]
            for finding, count in sorted(source.findings.items(), key=lambda item: -item[1]):
                said.append(f"{count} {finding.value}, such as {source.examples[finding][0]}")
            cells = (
                name or "(unnamed)",
                f"{source.num_samples}",
                f"{source.num_shapes}",
                str(verdict),
            )
            table.add_row(*map(escape, cells), escape("\n".join(said)))
        return table


def _shapes_of(message: Message) -> Iterator[WrittenShape]:
    """Of a turn's text, thinking and calls; of system prompts and results of tools none."""
    if message.role in ("system", "tool"):
        return
    yield from shapes_in(message.thinking or "")
    for part in message.parts:
        if isinstance(part, TextPart):
            yield from shapes_in(part.text)
        elif isinstance(part, GroundingPart):
            for item in part.items:
                shape = item.shape
                if isinstance(shape, Box | Point):  # as its text would be
                    written = shape.to(Relative1000(on=shape.space.on)).coordinates
                    key = "bbox_2d" if isinstance(shape, Box) else "point_2d"
                    yield WrittenShape(key, tuple(float(round(n)) for n in written))
    for call in message.tool_calls:
        arguments = call.arguments
        yield from shapes_in(arguments if isinstance(arguments, str) else json.dumps(arguments))


def _sizes_of(sample: Conversation | Sample) -> list[Size]:
    """Different sizes of the pictures, or none if one is not known."""
    if isinstance(sample, Sample):
        sizes = [(height, width) for height, width in sample.sizes or ()]
    else:
        images = [part.image for part in sample.parts if isinstance(part, ImagePart)]
        try:
            sizes = [image.size() for image in images]
        except DataError:
            return []
    return list(dict.fromkeys(sizes)) if all(min(size) > 0 for size in sizes) else []


def _share(count: int, of: int) -> str:
    return f"{100 * count / of:.3g} %"


def _pictures(sizes: Sequence[Size]) -> str:
    shown = ", ".join(f"{height}x{width}" for height, width in sizes[:2])
    return f" in {shown}{', …' if len(sizes) > 2 else ''} (height x width)" if shown else ""
