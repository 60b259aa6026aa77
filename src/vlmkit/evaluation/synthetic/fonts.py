"""Fonts that matplotlib ships, so that they are the same on every machine, and what they can write."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
from fontTools.ttLib import TTFont
from PIL import ImageFont

from vlmkit.errors import ConfigError

SANS, BOLD, SERIF, SERIF_BOLD, MONO = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSansMono",
)
FONTS = (SANS, BOLD, SERIF, SERIF_BOLD, MONO, "DejaVuSans-Oblique", "STIXGeneral", "STIXGeneralBol")


def font_file(name: str) -> Path:
    """Where a font is.

    Raises:
        ConfigError: matplotlib does not ship it; names those that it does.
    """
    folder = Path(matplotlib.get_data_path()) / "fonts/ttf"
    path = folder / f"{name}.ttf"
    if not path.is_file():
        shipped = ", ".join(sorted(other.stem for other in folder.glob("*.ttf")))
        raise ConfigError(f"font {name}: matplotlib ships {shipped}")
    return path


@lru_cache(maxsize=256)
def font(name: str, size_px: int) -> ImageFont.FreeTypeFont:
    """A font at a size. Lines are laid out by Pillow itself, which needs no other library."""
    return ImageFont.truetype(font_file(name), size_px, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=64)
def characters(name: str) -> frozenset[str]:
    """What a font has glyphs for."""
    with TTFont(font_file(name), lazy=True) as opened:
        return frozenset(map(chr, opened.getBestCmap()))


def check_glyphs(text: str, names: Sequence[str]) -> None:
    """Refuse a text that a font would draw as empty boxes.

    Raises:
        ConfigError: names the font and the characters.
    """
    for name in names:
        if missing := sorted(set(text) - characters(name) - {"\n"}):
            raise ConfigError(f"font {name} has no glyphs for {' '.join(missing[:20])}")


def text_width(text: str, name: str, size_px: int) -> float:
    """In pixels."""
    return font(name, size_px).getlength(text)


def wrapped(text: str, name: str, size_px: int, width: float) -> list[str]:
    """Lines of a paragraph that are not wider than `width` pixels, unless one word is."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, name, size_px) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
