"""One file that shows everything, needs nothing, and cannot be taken over by what it shows."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.inspection import gallery
from vlmkit.data.media import ImageArray
from vlmkit.data.record import ImagePart, TextPart
from vlmkit.inspection import page as pages
from vlmkit.inspection.page import page, page_name
from vlmkit.inspection.tokens import Vocabulary
from vlmkit.inspection.view import MicroBatch


class Elements(HTMLParser):
    """Tags with their attributes, and the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.titles: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        if self._inside == "title":
            self.titles.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""


def vocabulary() -> Vocabulary:
    return Vocabulary(gallery.processor().tokenizer)


@pytest.fixture(scope="module")
def batch() -> MicroBatch:
    return gallery.everything()


@pytest.fixture(scope="module")
def text(batch: MicroBatch) -> str:
    return page(batch, vocabulary())


@pytest.fixture(scope="module")
def elements(text: str) -> Elements:
    return Elements(text)


def test_nothing_is_fetched(elements):
    for tag, attributes in elements.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            address = attributes.get(name) or ""
            assert address.startswith(("data:image/", "#")) or not address, address[:80]


def test_data_cannot_become_code(text, elements):
    assert len(elements.scripts) == 2  # the numbers, and the page's own
    assert [tag for tag, _ in elements.tags].count("style") == 1
    assert not any(name.startswith("on") for _, attributes in elements.tags for name in attributes)
    assert elements.titles == ["step 100, micro-batch 0"]
    words = re.sub(r"<[^>]*>", "", text)  # tokens side by side
    for shown in (
        "&lt;/script&gt;&lt;script&gt;",
        "&lt;b&gt;chat&lt;/b&gt;",
        "&lt;/style&gt;.jsonl:1",
    ):
        assert shown in words
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_only_its_own_script_may_run(text, elements):
    (policy,) = [a["content"] for t, a in elements.tags if a.get("http-equiv")]
    digest = base64.b64encode(hashlib.sha256(elements.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_numbers_are_those_of_the_batch(batch, elements):
    data = json.loads(elements.scripts[0])
    for row, kept in zip(batch.rows, data["rows"], strict=True):
        np.testing.assert_array_equal(row.ids, kept["ids"])
        np.testing.assert_array_equal(row.labels, kept["labels"])
        np.testing.assert_array_equal(row.positions, [kept["t"], kept["h"], kept["w"]])
    assert set(data["text"]) >= {str(i) for row in batch.rows for i in row.ids.tolist()}


def test_each_token_is_an_element(batch, elements):
    legend = 5  # tokens that explain the colours
    chips = [int(a["data-n"] or 0) for t, a in elements.tags if t == "a" and "data-n" in a]
    single = sum(tag == "i" for tag, _ in elements.tags) - legend
    assert single + sum(chips) == sum(row.num_tokens for row in batch.rows)


def test_mistakes_and_skipped_samples_stand_in_the_header(batch, text):
    assert "This batch is wrong" not in text
    assert "image photos/0005.jpg: file not found &lt;i&gt;" in text
    wrong = page(replace(batch, failures=("row 0: <oh>",)), vocabulary())
    assert "This batch is wrong" in wrong
    assert "row 0: &lt;oh&gt;" in wrong


def test_other_micro_batches_are_linked(batch):
    middle = page(replace(batch, number=1, num_micro_batches=3), vocabulary())
    assert f'href="{page_name(100, 0)}"' in middle
    assert f'href="{page_name(100, 2)}"' in middle


def test_many_pictures_stay_small(monkeypatch):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (192, 256, 3), dtype=np.uint8) for _ in range(12)]
    conversations = [
        gallery.turns((ImagePart(ImageArray(pixels)), TextPart("What?")), "Noise.", source="noise")
        for pixels in noise
    ]
    batch = gallery.micro_batch([conversations[:6], conversations[6:]])
    full = page(batch, vocabulary())
    monkeypatch.setattr(pages, "MAX_PIXELS", 192 * 256 * 3)  # a quarter of them
    small = page(batch, vocabulary())
    assert len(small) < 0.5 * len(full)
    assert "50 % of the size that the model gets" in small
    assert "% of the size that the model gets" not in full
