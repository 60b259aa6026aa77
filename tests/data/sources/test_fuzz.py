"""Whatever a row holds: a conversation that can be used, or an error that says where and why."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.sources.writers import as_row, conversations
from vlmkit.data.media import InMemory
from vlmkit.data.record import Conversation
from vlmkit.data.sources.captions import Captions
from vlmkit.data.sources.documents import Documents, MatchedDocuments
from vlmkit.data.sources.llava import Llava
from vlmkit.data.sources.media import Media
from vlmkit.data.sources.messages import Messages
from vlmkit.data.sources.row import Row
from vlmkit.data.sources.sharegpt import ShareGPT
from vlmkit.data.sources.webdataset import WebDatasetSample
from vlmkit.errors import DataError

KEYS = st.sampled_from(
    [
        *(
            "type",
            "text",
            "image",
            "image_url",
            "video",
            "video_url",
            "url",
            "path",
            "bytes",
            "fps",
        ),
        *("times", "role", "content", "from", "value", "weight", "tool_calls", "function", "name"),
        *("arguments", "objects", "bbox_2d", "point_2d", "space", "width", "images", "messages"),
    ]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from(
        [10**400, float("nan"), float("inf"), -0.0, "", "\ud800", "\0", "<image>", "x"]
    )
    | st.sampled_from(
        ["data:image/png;base64,x", "http://x/y", "file:///x", "../x", "user", "[]", "{}"]
    )
    | st.text(max_size=3)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
TURNS = [{"from": "human", "value": "<image>x <video>"}, {"from": "gpt", "value": "y"}]
SEEDS: dict[str, dict[str, Any]] = {
    "llava": {"conversations": TURNS, "image": "a.jpg", "video": "b.mp4"},
    "sharegpt": {"conversations": TURNS, "images": ["a.jpg"], "videos": ["v"], "tools": "[]"},
    "messages": {
        "messages": [
            {"role": "user", "content": [
                {"type": "image", "image": "a.jpg"},
                {"type": "video", "video": ["a", "b"], "times": [0, 1], "video_end": 1},
                {"type": "boxes", "space": "pixels", "width": 9, "height": 9,
                 "objects": [{"bbox_2d": [1, 2, 3, 4], "label": "x"}, {"point_2d": [1, 2]}]},
            ]},
            {"role": "assistant", "content": "x", "weight": 1, "thinking": "y",
             "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
        ],
        "tools": [{"name": "f"}],
    },
    "captions": {"image": {"bytes": None, "path": "x"}, "caption": ["x", "y"]},
    "documents": {"texts": [None, "x"], "images": ["a", None]},
    "matched": {"text_list": ["x"], "image_info": [{"image_name": "a", "matched_text_index": 0}]},
}  # fmt: skip
LAYOUTS = {
    "llava": [Llava(), WebDatasetSample(Llava())],
    "sharegpt": [ShareGPT()],
    "messages": [Messages(), WebDatasetSample(Messages())],
    "captions": [Captions(), Captions(as_document=True)],
    "documents": [Documents()],
    "matched": [MatchedDocuments()],
}


def mutated(value: Any, draw) -> Any:
    """The value with something in it replaced, doubled or left out."""
    if isinstance(value, dict) and value and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(value)))
        what = draw(st.integers(0, 9))
        if what == 0:
            return {k: v for k, v in value.items() if k != key}
        if what == 1:
            return value | {draw(KEYS): draw(VALUES)}
        return value | {key: mutated(value[key], draw)}
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        at = draw(st.integers(0, len(value) - 1))
        what = draw(st.integers(0, 9))
        if what == 0:
            return value[:at] + value[at + 1 :]
        if what == 1:
            return [*value, value[at]]
        return [*value[:at], mutated(value[at], draw), *value[at + 1 :]]
    return draw(VALUES)


def outcome(layout, row: dict, media: Media) -> Conversation | DataError:
    """What a layout makes of a row; anything but a DataError is a mistake in the program."""
    try:
        return layout(Row(row, "fuzz.jsonl:1", 5), media)
    except DataError as error:
        return error


def check(layout, row: dict) -> None:
    if isinstance(layout, WebDatasetSample):
        row = {"__key__": "a", "json": InMemory(json.dumps(row).encode(), "a.json")}
    for media in (Media(), Media(root="/nowhere")):
        before = copy.deepcopy(row)
        found = outcome(layout, row, media)
        assert repr(row) == repr(before)
        if isinstance(found, DataError):
            assert "fuzz.jsonl:1" in str(found)
            assert len(str(found)) < 2000
            continue
        assert found.messages
        for message in found.messages:
            (message.text + (message.thinking or "")).encode()
        json.dumps([found.tools, [m.tool_calls for m in found.messages]], default=vars)


@pytest.mark.parametrize("kind", sorted(SEEDS))
def test_the_seeds_are_fine(kind):
    for layout in LAYOUTS[kind]:
        assert layout(Row(SEEDS[kind]), Media()).messages


@pytest.mark.parametrize("kind", sorted(SEEDS))
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_mutated_rows(kind, data):
    row = SEEDS[kind]
    for _ in range(data.draw(st.integers(1, 3))):
        row = mutated(row, data.draw)
        if not isinstance(row, dict):
            return
    for layout in LAYOUTS[kind]:
        check(layout, row)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(written=conversations(), data=st.data())
def test_mutated_conversations(written, data):
    row = mutated(as_row(written), data.draw)
    if isinstance(row, dict):
        check(Messages(), row)


@settings(max_examples=100, deadline=None)
@given(row=st.dictionaries(KEYS | st.sampled_from(["conversations", "caption", "texts"]), VALUES))
def test_rows_of_anything(row):
    for layouts in LAYOUTS.values():
        for layout in layouts:
            check(layout, row)


def test_deep_rows():
    deep: Any = "x"
    for _ in range(900):
        deep = [deep]

    def check_deep(layout, row: dict) -> None:
        found = outcome(layout, row, Media())
        assert isinstance(found, Conversation) or "fuzz.jsonl:1" in str(found)

    for kind, layouts in LAYOUTS.items():
        for layout in layouts:
            check_deep(layout, SEEDS[kind] | {"other": deep})
            for key in SEEDS[kind]:
                check_deep(layout, SEEDS[kind] | {key: deep})
    call = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": deep}}]}
    check_deep(Messages(), {"messages": [call]})
    check_deep(Messages(), {"messages": [{"role": "user", "content": "x"}], "tools": [{"a": deep}]})
