"""The short form of a page: a table of rows, and the beginnings of samples."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vlmkit.inspection.page import chip_text
from vlmkit.inspection.tokens import Vocabulary, in_hex, visible_text
from vlmkit.inspection.view import Kind, MicroBatch, Row, Sample

STYLES = {Kind.MASKED: "dim", Kind.SUPERVISED: "bold green", Kind.VISUAL: "blue"}


def summary(batch: MicroBatch, vocabulary: Vocabulary, samples_per_row: int = 3) -> RenderableType:
    """A micro-batch for a terminal.

    Args:
        batch: what to show.
        vocabulary: reads its tokens.
        samples_per_row: samples whose text is shown.
    """
    name = f"step {batch.step}, micro-batch {batch.number} of {batch.num_micro_batches}"
    parts: list[RenderableType] = [Text(name, "bold"), rows_table(batch)]
    for row in batch.rows:
        for sample in row.samples[:samples_per_row]:
            parts.append(sample_text(row, sample, vocabulary))
        more = len(row.samples) - samples_per_row
        if more > 0:
            parts.append(Text(f"… and {more} more samples in row {row.number}", "dim"))
    parts += [
        Text(visible_text(f"left out: {item.code}, {item.source}: {item.message}"), "yellow")
        for item in batch.skipped[:5]
    ]
    if len(batch.skipped) > 5:
        parts.append(Text(f"… and {len(batch.skipped) - 5} more left out", "yellow"))
    parts += [Text(f"wrong: {failure}", "bold red") for failure in batch.failures]
    return Group(*parts)


def rows_table(batch: MicroBatch) -> Table:
    """One line per row."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in ("row", "samples", "tokens", "full", "supervised", "visual", "patches", "work"):
        table.add_column(column, justify="right")
    table.add_column("sources")
    for row in batch.rows:
        sources: dict[str, int] = {}
        for sample in row.samples:
            sources[sample.source] = sources.get(sample.source, 0) + 1
        table.add_row(
            str(row.number),
            str(len(row.samples)),
            f"{row.num_tokens:,}",
            f"{row.num_tokens / batch.limits.tokens:.0%}",
            f"{row.count(Kind.SUPERVISED):,}",
            f"{row.count(Kind.VISUAL):,}",
            f"{row.num_patches:,}",
            f"{row.work / batch.mean_work:.2f}" if batch.mean_work else "–",
            Text(visible_text(", ".join(f"{n} {name}" for name, n in sources.items()))),
        )
    return table


def sample_text(row: Row, sample: Sample, vocabulary: Vocabulary, most: int = 200) -> Text:
    """The beginning of a sample: what is scored in bold, what is not dim."""
    head = f"sample {sample.number} · {sample.source} {sample.origin}".strip()
    counted = row.count(Kind.SUPERVISED, sample.start, sample.stop)
    text = Text(visible_text(head), "underline")
    text.append(f"  {sample.num_tokens:,} tokens, {counted:,} supervised\n", "dim not underline")
    chips = {run.start: (run, medium) for medium in sample.media for run in medium.runs}
    written = Text(no_wrap=False)
    at = sample.start
    while at < sample.stop and len(written) < most:
        if at in chips:
            run, medium = chips[at]
            words = chip_text(run.first_patch, run.num_patches, run.num_tokens, medium)
            written.append(f"[{words}]", STYLES[Kind.VISUAL])
            at += run.num_tokens
            continue
        stop = min((start for start in chips if start > at), default=sample.stop)
        ids = row.ids[at:stop].tolist()
        for glyphs in vocabulary.split(ids):
            if len(written) >= most:
                break
            first = at + glyphs.first
            mine = ids[glyphs.first : glyphs.first + glyphs.count]
            shown = (
                f"[{in_hex(b''.join(map(vocabulary.content, mine)))}]"
                if glyphs.text is None
                else visible_text(glyphs.text)
            )
            written.append(shown, STYLES[Kind(int(row.kinds[first]))])
        at = stop
    written.truncate(most)
    if len(written) >= most:
        written.append(" …", "dim")
    return text.append_text(written)
