"""LLaVA's and ShareGPT's layouts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlmkit.data.media import ImageFile, VideoFile
from vlmkit.data.record import ImagePart, Message, Part, TextPart, ToolCall, VideoPart
from vlmkit.data.sources.llava import Llava
from vlmkit.data.sources.media import Media
from vlmkit.data.sources.row import Row
from vlmkit.data.sources.sharegpt import ShareGPT
from vlmkit.errors import RecordError


def image(name: str) -> Part:
    return ImagePart(ImageFile(Path(name)))


def video(name: str) -> Part:
    return VideoPart(VideoFile(Path(name)))


def talk(*values: str) -> list[dict]:
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


def parts(layout, row: dict) -> list[tuple[Part, ...]]:
    return [message.parts for message in layout(Row(row, "a.json:7"), Media()).messages]


@pytest.mark.parametrize(
    ("row", "first"),
    [
        ({"image": "a", "text": "<image>\nWhat?"}, (image("a"), TextPart("What?"))),
        ({"image": "a", "text": "What?\n<image>"}, (TextPart("What?"), image("a"))),
        ({"image": ["a"], "text": "<image>\r\nWhat?"}, (image("a"), TextPart("What?"))),
        ({"images": ["a", "b"], "text": "<image>\n<image>\nSame?"},
         (image("a"), image("b"), TextPart("Same?"))),
        ({"images": ["a", "b"], "text": "Is <image> like <image>?"},
         (TextPart("Is "), image("a"), TextPart(" like "), image("b"), TextPart("?"))),
        ({"image": "a", "video": "v", "text": "<video><image>x"}, (video("v"), image("a"), TextPart("x"))),
        ({"image": "a", "text": "What?"}, (image("a"), TextPart("What?"))),  # LLaVA's habits
        ({"images": ["a", "b"], "videos": ["v"], "text": "x"},
         (image("a"), image("b"), video("v"), TextPart("x"))),
        ({"video": "v", "text": "<image>\nWhat?"}, (video("v"), TextPart("What?"))),
        ({"image": None, "text": "Hi\n"}, (TextPart("Hi\n"),)),
    ],
)  # fmt: skip
def test_pictures_stand_where_their_placeholders_were(row, first):
    row = dict(row)
    row["conversations"] = talk(row.pop("text"), "Yes.")
    assert parts(Llava(), row) == [first, (TextPart("Yes."),)]


def test_newlines_around_placeholders_may_be_kept():
    row = {"image": "a", "conversations": talk("x\n\n<image>\n\ny", "z")}
    assert parts(Llava(), row)[0] == (TextPart("x\n"), image("a"), TextPart("\ny"))
    assert parts(Llava(trim=False), row)[0] == (TextPart("x\n\n"), image("a"), TextPart("\n\ny"))


def test_placeholders_count_over_all_turns():
    row = {"images": ["a", "b"], "conversations": talk("<image>?", "one", "<image>?", "two")}
    assert [p[0] for p in parts(Llava(), row)] == [
        image("a"), TextPart("one"), image("b"), TextPart("two"),
    ]  # fmt: skip


def test_a_system_turn_comes_first_and_pictures_go_to_the_human():
    turns = [{"from": "system", "value": "Be brief."}, *talk("x", "y")]
    conversation = Llava()(Row({"image": "a", "conversations": turns, "id": "7"}), Media())
    assert [m.role for m in conversation.messages] == ["system", "user", "assistant"]
    assert conversation.messages[1].parts[0] == image("a")
    assert conversation.meta == {"id": "7"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({}, "conversations: it is missing; it must be a list"),
        ({"conversations": []}, "conversations: it is empty; a conversation has"),
        ({"conversations": "x"}, "conversations: it is text; it must be a list"),
        ({"conversations": ["x"]}, r"conversations\[0\]: it is text; it must be an object"),
        ({"conversations": [{"from": "alien", "value": "x"}]},
         r"\[0\].from: 'alien' is no known role; roles are human"),
        ({"conversations": [{"from": "human", "value": 3}]}, r"\[0\].value: it is a number"),
        ({"conversations": [{"from": "human"}]}, r"\[0\].value: it is missing"),
        ({"conversations": [{"from": "human", "valeu": "x"}]}, r"'valeu'; did you mean value\?"),
        ({"conversations": talk("<image>", "x")}, r"its text has 1 <image>, and the row has 0 image"),
        ({"images": ["a", "b"], "conversations": talk("<image>", "x")},
         r"its text has 1 <image>, and the row has 2 image.*; write <image> once for each"),
        ({"image": "a", "conversations": talk("<image>", "<image>")}, "has 2 <image>"),
        ({"video": "a", "conversations": talk("<image><image>", "x")}, "has 2 <image>"),
        ({"image": "a", "images": ["a"], "conversations": talk("<image>", "x")},
         "it has image and images; they mean the same"),
        ({"image": 3, "conversations": talk("<image>", "x")}, "image: it is a number"),
        ({"images": ["a", None], "conversations": talk("<image><image>", "x")},
         r"images\[1\]: it is missing"),
        ({"image": "a", "conversations": [{"from": "gpt", "value": "x"}]}, "0 <image>"),
        ({"conversations": [{"from": "human", "value": "x", "weight": 0.5}]},
         "weight: it is 0.5; a turn is"),
    ],
)  # fmt: skip
def test_llava_mistakes_name_the_row_and_a_remedy(row, words):
    with pytest.raises(RecordError, match=rf"a.json:7.*{words}"):
        parts(Llava(), row)


def test_other_names_of_columns():
    row = {"chat": talk("[IMG]x", "y"), "pic": "a"}
    layout = Llava(conversations="chat", image="pic", image_token="[IMG]")
    assert parts(layout, row)[0] == (image("a"), TextPart("x"))


CALL = {"name": "add", "arguments": {"a": 1}}
TOOLS = [{"type": "function", "function": {"name": "add"}}]


def test_sharegpt_with_tools():
    row = {
        "conversations": [
            {"from": "human", "value": "1+1?"},
            {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": "2"},
            {"from": "gpt", "value": "Two."},
        ],
        "system": "Be brief.",
        "tools": json.dumps(TOOLS),
    }
    conversation = ShareGPT()(Row(row), Media())
    assert conversation.tools == tuple(TOOLS)
    assert conversation.messages == (
        Message(role="system", parts=(TextPart("Be brief."),)),
        Message(role="user", parts=(TextPart("1+1?"),)),
        Message(role="assistant", tool_calls=(ToolCall("add", {"a": 1}),)),
        Message(role="tool", parts=(TextPart("2"),)),
        Message(role="assistant", parts=(TextPart("Two."),)),
    )


def test_sharegpt_variants():
    row = {
        "conversations": [
            {"role": "user", "content": "<image>x"},
            {"role": "function_call", "content": json.dumps([CALL, CALL])},
            {"role": "assistant", "content": "y", "train": False},
        ]
    }
    text, calls, last = ShareGPT()(Row(row), Media()).messages
    assert text.parts == (TextPart("<image>x"),)  # there are no pictures: this is text
    assert len(calls.tool_calls) == 2
    assert not last.is_scored
    assert parts(ShareGPT(), row | {"images": ["a"]})[0] == (image("a"), TextPart("x"))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"conversations": talk("x", "y"), "images": ["a"]},
         r"1 image\(s\) in columns of their own have 0 place\(s\) in the text; write <image>"),
        ({"conversations": talk("<image><image>", "y"), "images": ["a"]},
         r"\[0\].value: this is place 2 for an image, and the row has 1"),
        ({"conversations": [{"from": "function_call", "value": "add(1)"}]}, r"\[0\].value: .*not JSON"),
        ({"conversations": [{"from": "function_call", "value": "{}"}]}, r"value.name: it is missing"),
        ({"conversations": talk("x"), "tools": "{}"}, "tools: it is an object; it must be a list"),
        ({"conversations": talk("x"), "tools": ["x"]}, r"tools\[0\]: .*not JSON"),
        ({"conversations": [{"from": "system", "value": "a"}], "system": "b"}, "system: the first turn"),
        ({"conversations": [{"from": "document", "value": "a"}]}, "no known role"),
        ({"conversations": [{"from": "human", "role": "user", "value": "a"}]}, "it has from and role"),
        ({"conversations": [{"from": "human", "value": "\udc00"}]}, "half a character"),
    ],
)  # fmt: skip
def test_sharegpt_mistakes_name_the_row_and_a_remedy(row, words):
    with pytest.raises(RecordError, match=rf"a.json:7.*{words}"):
        parts(ShareGPT(), row)
