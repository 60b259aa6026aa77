"""What is known of data sets, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.markup import escape
from rich.table import Table

Numbers = dict[str, Any]

_SIZES = {
    "tokens": "tokens",
    "supervised_tokens": "of them supervised",
    "visual_tokens": "of them visual",
    "patches": "patches",
}


def data_tables(numbers: Numbers) -> Iterator[Table]:
    """Tables of what `stats.json` holds, one after the other; those without rows are left out."""
    sources: Numbers = numbers["sources"]
    tables = [
        _sources(sources),
        _sizes(sources),
        _pictures(sources),
        _videos(sources),
        _unusable(sources),
        _long(sources, numbers["row_tokens"], numbers["row_patches"]),
        *_training(numbers.get("training", {})),
    ]
    yield from (table for table in tables if table.row_count)


def short(value: float) -> str:
    """A number in five characters or so: 1,234, 56.7k, 8.9M."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            scaled = value / (1e3 if letter == "k" else size)
            return f"{scaled:.{0 if scaled >= 100 else 1}f}{letter}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, header_style="bold", padding=(0, 1))
    for i, column in enumerate(columns):
        words = not i or column in _WORDS
        table.add_column(column, justify="left" if words else "right", no_wrap=not i)
    return table


_WORDS = ("", "reason", "example", "made to fit", "median size")


def _row(table: Table, *cells: object) -> None:
    table.add_row(*(escape(str(cell)) for cell in cells))


def _sources(sources: Numbers) -> Table:
    table = _table(
        "sources; pictures and videos per usable sample, and at most",
        "", "samples", "measured", "usable", "text only", "pictures", "videos",
    )  # fmt: skip
    for name, source in sources.items():
        pictures, videos = (source[f"{kind}_per_sample"] for kind in ("images", "videos"))
        _row(
            table,
            name,
            "endless" if source["endless"] else short(source["samples"]),
            short(source["measured"]),
            _percent(source["usable"], source["measured"]),
            f"{source['text_only_share']:.1%}",
            *(
                f"{each['mean']:.2g} ({each['max']:.0f})" if each.get("max") else "-"
                for each in (pictures, videos)
            ),
        )
    return table


def _sizes(sources: Numbers) -> Table:
    table = _table("a usable sample", "", "", "mean", "p50", "p90", "p99", "max")
    for name, source in sources.items():
        for key, title in _SIZES.items():
            if found := source[key]:
                values = (short(found[which]) for which in ("mean", "p50", "p90", "p99", "max"))
                _row(table, name if key == "tokens" else "", title, *values)
    return table


def _pictures(sources: Numbers) -> Table:
    table = _table(
        "pictures", "", "pictures", "median size", "largest", "width/height", "enlarged", "reduced"
    )
    for name, source in sources.items():
        images = source["images"]
        if images["count"]:
            _row(
                table,
                name,
                short(images["count"]),
                f"{images['width']['p50']:.0f} x {images['height']['p50']:.0f}",
                f"{images['megapixels']['max']:.3g} MP",
                _range(images["aspect_ratio"]),
                f"{images['enlarged_share']:.1%}",
                f"{images['reduced_share']:.1%}",
            )
    return table


def _videos(sources: Numbers) -> Table:
    table = _table(
        "videos: stretches, and the frames kept of them",
        "", "videos", "median size", "seconds", "file fps", "kept frames", "kept fps",
    )  # fmt: skip
    for name, source in sources.items():
        videos = source["videos"]
        if videos["count"]:
            spans = ("seconds", "file_fps", "kept_frames", "kept_fps")
            _row(
                table,
                name,
                short(videos["count"]),
                f"{videos['width']['p50']:.0f} x {videos['height']['p50']:.0f}",
                *(_range(videos[key]) for key in spans),
            )
    return table


def _unusable(sources: Numbers) -> Table:
    table = _table("samples that cannot be used", "", "reason", "samples", "share", "example")
    for name, source in sources.items():
        for reason, count in source["unusable"].items():
            share = _percent(count, source["measured"])
            _row(table, name, reason, short(count), share, source["examples"].get(reason, ""))
    return table


def _long(sources: Numbers, row_tokens: int, row_patches: int | None) -> Table:
    bound = "" if row_patches is None else f" or {row_patches:,} patches"
    table = _table(
        f"samples longer than a row of {row_tokens:,} tokens{bound}",
        "", "samples", "share", "left out", "longest", "made to fit",
    )  # fmt: skip
    for name, source in sources.items():
        found = source["longer_than_a_row"]
        if not found["count"]:
            continue
        made = (
            f"{short(part['count'])} by {remedy}, which keeps {part['tokens_kept']['mean']:.0%} of them"
            for remedy, part in found["made_to_fit"].items()
        )
        counts = (short(found["count"]), _percent(found["count"], source["measured"]))
        longest = short(found["longest"])
        _row(table, name, *counts, short(found["left_out"]), longest, "; ".join(made) or "none")
    return table


def _training(training: Numbers) -> Iterator[Table]:
    if "error" in training or not training:
        return
    steps = training["num_steps"]
    mixture = _table(
        "mixture", "", "share of samples", "share of tokens", f"epochs in {steps:,} steps"
    )
    for name, part in training["mixture"].items():
        shares = (f"{part[f'share_of_{what}']:.1%}" for what in ("samples", "tokens"))
        epochs = part["epochs_of_the_run"]
        _row(mixture, name, *shares, "-" if epochs is None else f"{epochs:.3g}")
    yield mixture

    step = _table("a step", "", "mean")
    for title, key in (
        ("samples", "samples_per_step"),
        ("rows", "rows_per_step"),
        ("tokens", "tokens_per_step"),
        ("steps of an epoch", "steps_per_epoch"),
        ("samples of an epoch", "samples_per_epoch"),
        ("tokens of an epoch", "tokens_per_epoch"),
    ):
        if training[key] is not None:
            _row(step, title, short(training[key]))
    _row(step, "rows filled", f"{training['row_fill']:.1%}")
    yield step

    ranks = _table("ranks", "", "rows each", "not padding", "busy", "busy, worst step")
    for size, part in training["ranks"].items():
        note = " (some have no row)" if part["idle_ranks"] else ""
        percent = (f"{part[key]:.1%}" for key in ("fill", "evenness", "worst_evenness"))
        _row(ranks, f"{size}{note}", short(part["rows_per_rank"]), *percent)
    yield ranks


def _percent(count: float, of: float) -> str:
    return f"{count / of:.2%}" if of else "-"


def _range(found: Numbers) -> str:
    """Median, and between which values 98 % lie."""
    if not found:
        return "-"
    low, middle, high = (f"{found[which]:.3g}" for which in ("p1", "p50", "p99"))
    return middle if low == high else f"{middle} ({low}-{high})"
