"""The page as a browser sees it: complete, right where it draws, silent on the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.inspection import gallery
from tests.inspection.browser import NAMES, find_browser, report
from vlmkit.inspection.page import page
from vlmkit.inspection.tokens import Vocabulary
from vlmkit.inspection.view import Kind, MicroBatch

pytestmark = pytest.mark.skipif(
    find_browser() is None,
    reason=f"no browser: none of {', '.join(NAMES)} is on the path, and VLMKIT_BROWSER is not set",
)

SCRIPT = r"""
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const box = (element) => element.getBoundingClientRect();
const onPicture = (picture, x, y) => {
  const image = box(picture.querySelector("img"));
  return [(x - image.left) / image.width, (y - image.top) / image.height];
};
const pictures = all(".image .pic").map((picture) => ({
  size: [picture.querySelector("img").naturalWidth, picture.querySelector("img").naturalHeight],
  shapes: all(".shapes > *", picture).map((shape) => {
    const at = shape.getBBox(), toScreen = shape.getScreenCTM();
    const corner = (x, y) => {
      const seen = new DOMPoint(x, y).matrixTransform(toScreen);
      return onPicture(picture, seen.x, seen.y);
    };
    return [...corner(at.x, at.y), ...corner(at.x + at.width, at.y + at.height)];
  }),
  labels: all(".label", picture).map((label) =>
    [label.textContent, box(label).left >= box(picture).left - 1]),
}));
const point = (element, x, y) => {
  const at = box(element);
  element.dispatchEvent(new PointerEvent("pointermove", {
    bubbles: true, clientX: at.left + x * at.width, clientY: at.top + y * at.height }));
  const tip = document.getElementById("tip");
  return tip.hidden ? null : tip.innerText;
};
const strip = all(".strip a").map((block) => {
  const whole = box(block.parentElement), at = box(block);
  const target = document.getElementById(block.hash.slice(1));
  return [(at.left - whole.left) / whole.width, at.width / whole.width, target?.tagName];
});
const chips = all(".text a.v").map((chip) =>
  [Number(chip.dataset.n), document.getElementById(chip.hash.slice(1))?.tagName]);
return {
  width: [document.documentElement.scrollWidth, innerWidth],
  title: document.title,
  tokens: all(".text i").length,
  supervised: all(".text i.s").length,
  chips, strip, pictures,
  images: all("img").map((image) => image.complete && image.naturalWidth > 0),
  hover: {
    token: point(all(".text i.s")[0], 0.5, 0.5),
    chip: point(all(".text a.v")[0], 0.5, 0.5),
    lit: all(".lit").length,
    picture: point(all(".image .pic")[0], 0.999, 0.999),
    plot: point(all(".plot")[0], 0.999, 0.5),
    nothing: point(document.body, 0.5, 0.5),
  },
};
"""


@pytest.fixture(scope="module")
def batch() -> MicroBatch:
    return gallery.everything()


@pytest.fixture(scope="module", params=[1280, 800])
def found(
    batch: MicroBatch, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("page")
    text = page(batch, Vocabulary(gallery.processor().tokenizer))
    reported = report(text, SCRIPT, folder, request.param)
    assert reported["trouble"] == []
    assert reported["fetched"] == []
    seen: dict[str, Any] = reported["found"]
    return seen


def test_every_token_is_there(found, batch):
    assert found["tokens"] + sum(n for n, _ in found["chips"]) == sum(
        row.num_tokens for row in batch.rows
    )
    assert found["supervised"] == batch.count(Kind.SUPERVISED)
    assert all(target == "FIGURE" for _, target in found["chips"])
    assert found["title"] == "step 100, micro-batch 0"  # the hostile text did not run


def test_every_picture_is_there(found, batch):
    media = [m for row in batch.rows for s in row.samples for m in s.media]
    frames = sum(1 if m.kind == "image" else m.grid[0] * m.frames_per_patch for m in media)
    assert found["images"] == [True] * frames
    sizes = [[m.size[1], m.size[0]] for m in media if m.kind == "image"]
    assert [picture["size"] for picture in found["pictures"]] == sizes


def test_shapes_sit_where_they_belong(found, batch):
    media = [m for row in batch.rows for s in row.samples for m in s.media if m.kind == "image"]
    assert sum(len(m.shapes) for m in media) == 4
    for medium, picture in zip(media, found["pictures"], strict=True):
        height, width = medium.size
        expected = [
            [n / side for n, side in zip((s.coordinates * 2)[:4], (width, height) * 2, strict=True)]
            for s in medium.shapes
        ]
        assert len(picture["shapes"]) == len(expected)
        for drawn, shape in zip(picture["shapes"], expected, strict=True):
            assert drawn == pytest.approx(shape, abs=2e-3)  # measured 6e-6
        assert [name for name, _ in picture["labels"]] == [s.label for s in medium.shapes]
        assert all(inside for _, inside in picture["labels"])
    x1, y1, x2, y2 = found["pictures"][0]["shapes"][0]
    assert (x1, y1, x2, y2) == pytest.approx(gallery.RABBIT, abs=2e-3)


def test_the_strip_is_to_scale(found, batch):
    expected = [
        [s.start / len(row.ids), s.num_tokens / len(row.ids)]
        for row in batch.rows
        for s in row.samples
    ]
    for (left, width, target), wanted in zip(found["strip"], expected, strict=True):
        assert [left, width] == pytest.approx(wanted, abs=2e-3)  # measured 2e-5
        assert target == "ARTICLE"


def test_pointing_tells_ids_positions_and_labels(found, batch):
    row, hover = batch.rows[0], found["hover"]
    first = int((row.kinds == Kind.SUPERVISED).argmax())
    t, h, w = row.positions[:, first]
    assert f"({row.ids[first]})" in hover["token"]
    assert f"place {first} of row 0" in hover["token"]
    assert f"position t {t}, h {h}, w {w}" in hover["token"]
    assert f"({row.labels[first]})" in hover["token"].split("predicts")[1]
    assert "supervised" in hover["token"]
    run = row.samples[0].media[0].runs[0]
    last = run.start + run.num_tokens - 1
    assert f"places {run.start} to {last} of row 0" in hover["chip"]
    assert hover["lit"] >= 1
    t, h, w = row.positions[:, last]
    assert f"position t {t}, h {h}, w {w}" in hover["picture"]
    assert f"place {len(row.ids) - 1} of row 0" in hover["plot"] or "padding" in hover["plot"]
    assert hover["nothing"] is None


def test_it_fits_the_window(found):
    content, window = found["width"]
    assert content <= window
