"""One line of text on a plain ground: words, numbers and codes in the fonts that ship."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageDraw

from vlmkit.data.record import ImagePart, TextPart
from vlmkit.errors import ConfigError
from vlmkit.evaluation.synthetic.fonts import FONTS, check_glyphs, font
from vlmkit.evaluation.synthetic.generated import DrawnImage, Made, Rng, child, one_of
from vlmkit.evaluation.synthetic.sentences import sentence

_CODE = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"  # without what looks alike: I and 1, O and 0


def words(rng: Rng) -> str:
    """Two to four words that follow each other in a sentence."""
    found = sentence(rng).rstrip(".").replace(",", "").split()
    count = int(rng.integers(2, 5))
    first = int(rng.integers(len(found) - count + 1))
    return " ".join(found[first : first + count])


def number(rng: Rng) -> str:
    """A price, with two decimals and commas."""
    return f"{rng.integers(100, 10_000_000) / 100:,.2f}"


def code(rng: Rng) -> str:
    """Two groups of letters and digits."""
    letters = [one_of(rng, _CODE) for _ in range(7)]
    return f"{''.join(letters[:3])}-{''.join(letters[3:])}"


TEXTS = {"words": words, "number": number, "code": code}


@dataclass(frozen=True, kw_only=True)
class ReadText:
    """What does it say? Texts of each sort in turn.

    Attributes:
        fonts: files that matplotlib ships, without `.ttf`.
        sizes_px: smallest and largest letters.
        least_contrast: of letters and ground, 0 to 1 of the way from black to white.
        most_noise: largest standard deviation of the pixels' noise, of 255.
        most_tilt_deg: largest rotation either way.
    """

    fonts: Sequence[str] = FONTS
    sizes_px: tuple[int, int] = (16, 48)
    least_contrast: float = 0.35
    most_noise: float = 20.0
    most_tilt_deg: float = 4.0

    def __post_init__(self) -> None:
        """Refuse fonts that could not write what is asked, and sizes that are none."""
        check_glyphs(f"{_CODE}-0123456789.,abcdefghijklmnopqrstuvwxyz", self.fonts)
        if not 6 <= self.sizes_px[0] <= self.sizes_px[1]:
            raise ConfigError(
                f"sizes_px is {list(self.sizes_px)}; give smallest and largest, from 6"
            )
        if not 0 < self.least_contrast <= 1:
            raise ConfigError(f"least_contrast is {self.least_contrast}; it must lie in 0..1")

    def __call__(self, index: int, rng: Rng) -> Made:
        """See `Kind`."""
        sort = list(TEXTS)[index % len(TEXTS)]
        text, name = TEXTS[sort](rng), one_of(rng, self.fonts)
        size = int(rng.integers(self.sizes_px[0], self.sizes_px[1] + 1))
        left, top, right, bottom = font(name, size).getbbox(text)
        width, height = round(right - left) + 2 * size, round(bottom - top) + 2 * size
        height += round(width * np.sin(np.radians(self.most_tilt_deg)))
        image = DrawnImage(
            partial(self._draw, child(rng), text, name, size, (width, height)), width, height
        )
        ask = TextPart("What does it say? Answer with the text alone.")
        categories = {"text": sort, "font": name, "size": "small" if size < 24 else "large"}
        return Made(parts=(ImagePart(image), ask), target=text, categories=categories)

    def _draw(
        self, seed: int, text: str, name: str, size: int, area: tuple[int, int]
    ) -> Image.Image:
        rng = np.random.default_rng(seed)
        contrast = rng.uniform(self.least_contrast, 1.0)
        dark = rng.uniform(0, 1 - contrast)
        shades = [round(255 * shade) for shade in (dark, dark + contrast)]
        ink, ground = shades if rng.random() < 0.7 else shades[::-1]
        grey = Image.new("L", area, ground)
        middle = (area[0] / 2, area[1] / 2)
        ImageDraw.Draw(grey).text(middle, text, fill=ink, font=font(name, size), anchor="mm")
        tilt = rng.uniform(-self.most_tilt_deg, self.most_tilt_deg)
        grey = grey.rotate(tilt, Image.Resampling.BICUBIC, fillcolor=ground)
        noise = rng.normal(0, rng.uniform(0, self.most_noise), (area[1], area[0], 3))
        tint = rng.uniform(-12, 12, 3)
        pixels = np.asarray(grey, dtype=np.float64)[..., None] + tint + noise
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
