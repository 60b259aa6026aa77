"""A micro-batch -> one HTML file that needs nothing else: no network, no other file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from vlmkit.inspection import charts
from vlmkit.inspection.media import Medium, seconds_of
from vlmkit.inspection.pictures import data_url
from vlmkit.inspection.self_contained import rendered
from vlmkit.inspection.tokens import NEWLINE, TAB, Vocabulary, in_hex, visible
from vlmkit.inspection.view import Kind, MicroBatch, Row, Sample

MAX_PIXELS = 24_000_000
"""Pixels of all pictures of a page; beyond, they are shown smaller, and the page says so."""

_FOLDER = Path(__file__).parent
_CLASSES = {Kind.MASKED: "", Kind.SUPERVISED: "s", Kind.VISUAL: "v", Kind.PADDING: "p"}
_WHITE_SPACE = {" ": "<u> </u>", "\n": '<u class="n"></u>\n', "\t": '<u class="t">\t</u>'}


def page_name(step: int, number: int) -> str:
    """File name of the page of a micro-batch."""
    return f"step-{step}-batch-{number}.html"


def page(batch: MicroBatch, vocabulary: Vocabulary) -> str:
    """The page of a micro-batch.

    Texts of the data are escaped, and the page forbids itself any script but its own and any address.

    Args:
        batch: what to show.
        vocabulary: reads its tokens.
    """
    pixels = sum(_num_pixels(medium) for medium in _media(batch))
    scale = min(1.0, (MAX_PIXELS / pixels) ** 0.5) if pixels else 1.0
    return rendered(
        _FOLDER,
        "page",
        style="page.css",
        data=_data(batch, vocabulary),
        batch=batch,
        Kind=Kind,
        scale=scale,
        row_of=lambda row: _RowOnPage(row, vocabulary),
        pictures=lambda medium: [data_url(frame, scale) for frame in medium.frames()],
        clock_plot=charts.clock_plot,
        hues={source: i % 8 for i, source in enumerate(batch.sources)},
        page_name=page_name,
    )


def tokens_html(row: Row, sample: Sample, vocabulary: Vocabulary) -> Markup:
    """The tokens of a sample as flowing text: one `<i>` each, one link per run of visual tokens."""
    chips = {
        run.start: (run, medium, i) for i, medium in enumerate(sample.media) for run in medium.runs
    }
    parts: list[str] = []
    at = sample.start
    while at < sample.stop:
        if at in chips:
            run, medium, i = chips[at]
            parts.append(
                f'<a class="v" href="#m{sample.number}-{i}" data-n="{run.num_tokens}">'
                f"{escape(chip_text(run.first_patch, run.num_patches, run.num_tokens, medium))}</a>"
            )
            at += run.num_tokens
            continue
        stop = min((start for start in chips if start > at), default=sample.stop)
        parts += _glyphs(row, at, stop, vocabulary)
        at = stop
    return Markup("".join(parts))


def chip_text(first: int, num_patches: int, num_tokens: int, medium: Medium) -> str:
    """Words for a run of visual tokens."""
    size = f"{medium.num_columns}×{medium.num_rows}"
    if medium.kind == "image":
        return f"image {medium.number} · {size} = {num_tokens} tokens"
    total = medium.grid[0]
    if num_patches == total:
        return f"video {medium.number} · {total} × {size} = {num_tokens} tokens"
    last = f"–{first + num_patches}" if num_patches > 1 else ""
    many = f"{num_patches} × " if num_patches > 1 else ""
    return (
        f"video {medium.number} · {first + 1}{last} of {total} · {many}{size} = {num_tokens} tokens"
    )


@dataclass(frozen=True)
class _RowOnPage:
    """A row with what the template draws of it."""

    row: Row
    vocabulary: Vocabulary

    @property
    def stretches(self) -> list[tuple[int, int, str]]:
        """Start, number and name of kind."""
        return [
            (start, n, kind.name.lower()) for start, n, kind in charts.stretches(self.row.kinds)
        ]

    @property
    def plot(self) -> tuple[list[str], int]:
        """See `charts.position_paths`."""
        return charts.position_paths(self.row)

    @property
    def ticks(self) -> list[float]:
        """Places of labels under the row."""
        return charts.ticks(len(self.row.ids))

    def tokens(self, sample: Sample) -> Markup:
        """See `tokens_html`."""
        return tokens_html(self.row, sample, self.vocabulary)

    def clocks(self, video: Medium) -> list[dict[str, Any]]:
        """What the text, the file and the time ids say about each temporal patch."""
        written = {r.first_patch: r.written for r in video.runs if r.num_patches == 1}
        return [
            {
                "number": patch,
                "start": start,
                "written": written.get(patch),
                "seconds": seconds_of(written.get(patch)),
                "sources": video.sources_of(patch),
                "time_id": int(self.row.positions[0, start]),
            }
            for patch, start in enumerate(video.patch_starts)
        ]


def _glyphs(row: Row, start: int, stop: int, vocabulary: Vocabulary) -> list[str]:
    """Text tokens; those that share a character stand under it, by their bytes."""
    ids = row.ids[start:stop].tolist()
    parts: list[str] = []
    for glyphs in vocabulary.split(ids):
        first = start + glyphs.first
        mine = ids[glyphs.first : glyphs.first + glyphs.count]
        names = [_CLASSES[Kind(int(kind))] for kind in row.kinds[first : first + glyphs.count]]
        if glyphs.count == 1 and glyphs.text is not None:
            name = f"{names[0]} x".strip() if glyphs.is_special else names[0]
            parts.append(_element(name, _text_html(glyphs.text)))
            continue
        bytes_html = "".join(
            _element(f"{name} h".strip(), in_hex(vocabulary.content(token)))
            for name, token in zip(names, mine, strict=True)
        )
        whole = "" if glyphs.text is None else f"<b>{_text_html(glyphs.text)}</b>"
        parts.append(f'<span class="g">{whole}<span>{bytes_html}</span></span>')
    return parts


def _element(name: str, content: str) -> str:
    return f'<i class="{name}">{content}</i>' if name else f"<i>{content}</i>"


@lru_cache(maxsize=65_536)
def _text_html(text: str) -> str:
    """Text with visible white space; spaces and line breaks stay what they are, for searching."""
    shown = (_WHITE_SPACE.get(char) or str(escape(_named(char))) for char in text)
    return "".join(shown)


def _named(char: str) -> str:
    shown = visible(char)
    assert shown not in (NEWLINE, TAB)
    return shown


def _data(batch: MicroBatch, vocabulary: Vocabulary) -> dict[str, Any]:
    """What the page's script looks up about tokens."""
    rows = [
        {
            "ids": row.ids.tolist(),
            "labels": row.labels.tolist(),
            "kinds": row.kinds.tolist(),
            "t": row.positions[0].tolist(),
            "h": row.positions[1].tolist(),
            "w": row.positions[2].tolist(),
            "samples": [[s.number, s.start, s.stop] for s in row.samples],
        }
        for row in batch.rows
    ]
    used = {int(i) for row in batch.rows for i in (*row.ids.tolist(), *row.labels.tolist())}
    return {"rows": rows, "text": {i: vocabulary.shown(i) for i in sorted(used) if i >= 0}}


def _media(batch: MicroBatch) -> list[Medium]:
    return [medium for row in batch.rows for sample in row.samples for medium in sample.media]


def _num_pixels(medium: Medium) -> int:
    frames = 1 if medium.kind == "image" else medium.grid[0] * medium.frames_per_patch
    return frames * medium.size[0] * medium.size[1]
