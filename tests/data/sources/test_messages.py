"""The layout of OpenAI's, transformers' and Qwen's messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.sources.writers import png
from vlmkit.data.geometry.shapes import (
    Box,
    Grounding,
    Picture,
    Point,
    Relative1,
    Relative1000,
    SourcePixels,
)
from vlmkit.data.media import FrameSequence, ImageFile, VideoFile
from vlmkit.data.record import (
    Conversation,
    GroundingPart,
    ImagePart,
    Message,
    Part,
    TextPart,
    ToolCall,
    VideoPart,
)
from vlmkit.data.sources.media import Media
from vlmkit.data.sources.messages import Messages
from vlmkit.data.sources.row import Row
from vlmkit.errors import DataError, Reason, RecordError

IMAGE = ImagePart(ImageFile(Path("a.png")))
FILES = (ImageFile(Path("a")), ImageFile(Path("b")))


def read(*turns: dict, layout: Messages | None = None, **columns) -> Conversation:
    return (layout or Messages())(Row({"messages": list(turns), **columns}, "a.jsonl:7"), Media())


def user(content, **more) -> dict:
    return {"role": "user", "content": content, **more}


def parts(*content, **columns) -> tuple[Part, ...]:
    return read(user(list(content)), **columns).messages[0].parts


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "a.png"},
        {"image": "a.png"},
        {"image": "a.png", "text": None, "type": None},
        {"type": "image", "path": "a.png"},
        {"type": "image", "url": "a.png"},
        {"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}},
        {"type": "image_url", "image_url": "a.png"},
        {"image": {"bytes": None, "path": "a.png"}},
    ],
)
def test_ways_to_write_a_picture(part):
    assert parts(part) == (IMAGE,)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "video", "video": "v.mp4"}, VideoPart(VideoFile(Path("v.mp4")))),
        ({"video_url": {"url": "v.mp4"}}, VideoPart(VideoFile(Path("v.mp4")))),
        ({"video": "v.mp4", "video_start": 1, "video_end": 2.5},
         VideoPart(VideoFile(Path("v.mp4")), 1.0, 2.5)),
        ({"video": "v.mp4", "video_end": 2}, VideoPart(VideoFile(Path("v.mp4")), None, 2.0)),
        ({"video": ["a", "b"], "fps": 2}, VideoPart(FrameSequence(FILES, (0.0, 0.5), "n"))),
        ({"video": ["a", "b"], "sample_fps": 4.0}, VideoPart(FrameSequence(FILES, (0.0, 0.25), "n"))),
        ({"video": ["a", "b"], "times": [1, 3]}, VideoPart(FrameSequence(FILES, (1.0, 3.0), "n"))),
    ],
)  # fmt: skip
def test_ways_to_write_a_video(part, expected):
    (found,) = parts(part)
    assert isinstance(found, VideoPart)
    if isinstance(expected.video, FrameSequence):
        assert isinstance(found.video, FrameSequence)
        assert (found.video.frames, found.video.times_s) == (FILES, expected.video.times_s)
        assert found.video.name == "a.jsonl:7 messages[0].content[0]"
    else:
        assert found == expected


def test_text():
    assert parts("x", {"text": "y"}, {"type": "text", "text": ""}) == (
        TextPart("x"), TextPart("y"), TextPart(""),
    )  # fmt: skip
    assert read(user("<image>x")).messages[0].parts == (TextPart("<image>x"),)
    assert read(user("")).messages[0].parts == ()


def test_pictures_in_a_column_of_their_own():
    conversation = read(
        user([{"type": "image"}, {"type": "text", "text": "<image>?"}]),
        user("and <image>\nthis, <video>?"),
        images=["a", "b"],
        videos=["v"],
    )
    first, second = FILES
    assert [message.parts for message in conversation.messages] == [
        (ImagePart(first), TextPart("<image>?")),
        (TextPart("and "), ImagePart(second), TextPart("this, "), VideoPart(VideoFile(Path("v"))),
         TextPart("?")),
    ]  # fmt: skip
    assert conversation.meta == {}
    kept = read(user("<image>"), images=["a"], layout=Messages(images=None))
    assert kept.messages[0].parts == (TextPart("<image>"),)
    assert kept.meta == {"images": ["a"]}


def test_a_stretch_of_a_video_in_a_column():
    (part,) = parts({"type": "video", "video_start": 3}, videos=["v"])
    assert part == VideoPart(VideoFile(Path("v")), 3.0, None)


def test_the_assistant_thinks_calls_and_is_scored_or_not():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a":  1}'}}
    conversation = read(
        user("x", name="Ann"),
        {"role": "assistant", "content": None, "tool_calls": [call, {"name": "g", "arguments": {}}],
         "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "1", "content": "2"},
        {"role": "assistant", "content": "y", "weight": 0, "thinking": ""},
        {"role": "assistant", "function_call": {"name": "h", "arguments": ""}, "train": True},
        tools=[{"name": "f"}],
        id=4,
    )  # fmt: skip
    assert conversation.messages[1:] == (
        Message(
            role="assistant",
            thinking="hm",
            tool_calls=(ToolCall("f", '{"a":  1}'), ToolCall("g", {})),
        ),
        Message(role="tool", parts=(TextPart("2"),)),
        Message(role="assistant", parts=(TextPart("y"),), scored=False, thinking=""),
        Message(role="assistant", tool_calls=(ToolCall("h", {}),), scored=True),
    )
    assert conversation.tools == ({"name": "f"},)
    assert conversation.meta == {"id": 4}


def test_a_document():
    conversation = read({"role": "document", "content": [{"image": "a.png"}, "text"]})
    assert conversation.messages == (Message(role="document", parts=(IMAGE, TextPart("text"))),)


def boxes(space: str | None = "relative_1000", **more) -> dict:
    objects = [{"bbox_2d": [1, 2, 3, 4], "label": "cup"}, {"point_2d": [1, 2], "label": None}]
    return {"type": "boxes", "space": space, "objects": objects, **more}


def test_boxes_know_their_space_and_picture(tmp_path):
    (tmp_path / "p.png").write_bytes(png((40, 30)))
    picture = {"image": str(tmp_path / "p.png")}
    for part, space in (
        (boxes(), Relative1000()),
        (boxes(image=1), Relative1000(on=Picture(1))),
        (boxes("relative_1"), Relative1()),
        (boxes("pixels"), SourcePixels(width=40, height=30)),
        (boxes("pixels", width=400, height=300), SourcePixels(width=400, height=300)),
    ):
        conversation = read(user([part, picture]), user([picture]))  # pictures may come later
        assert conversation.messages[0].parts[0] == GroundingPart(
            items=(Grounding(Box(1, 2, 3, 4, space), "cup"), Grounding(Point(1, 2, space), "")),
            image=part.get("image", 0),
        )


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (boxes(image=2), r"about image 2, and the conversation has 1; count its images from 0"),
        (boxes(image=0.5), "image: it is 0.5; give a whole number"),
        (boxes(None), "space: it is missing"),
        (boxes("yards"), "'yards' is no known space; .* pixels, relative_1000"),
        (boxes("pixels", width=0, height=3), "wider and higher than 0"),
        (boxes("pixels", width=3), "height: it is missing"),
        (boxes() | {"objects": [{"bbox_2d": [3, 2, 1, 4]}]}, "objects: .*ends before it begins"),
        (boxes() | {"objects": [{"bbox_2d": [3, 2]}]}, "must be a list of 4 numbers"),
        (boxes() | {"objects": [{"bbox_2d": [3, 2, "a", 1]}]}, r"bbox_2d\[2\]: it is text"),
        (boxes() | {"objects": [{"label": "x"}]}, "exactly one of"),
        (boxes() | {"objects": [{"point_2d": [1, 2], "lable": "x"}]}, "did you mean label"),
        (boxes() | {"objects": None}, "objects: it is missing"),
    ],
)
def test_mistakes_about_boxes(part, words):
    with pytest.raises(RecordError, match=rf"a.jsonl:7 messages\[0\].content\[1\].*{words}"):
        parts({"image": "a.png"}, part)


def test_pixels_of_a_missing_picture():
    with pytest.raises(DataError, match=r"nowhere.png") as caught:
        parts({"image": "nowhere.png"}, boxes("pixels"))
    assert caught.value.code is Reason.MISSING_FILE


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"video": ["a", "b"]}, "its frames have no clock; give the fps"),
        ({"video": ["a", "b"], "fps": 2, "times": [0, 1]}, "it has two clocks"),
        ({"video": ["a", "b"], "fps": 0}, "fps is 0"),
        ({"video": ["a", "b"], "times": [0]}, "2 frames have 1 times"),
        ({"video": ["a", "b"], "times": [1, 1]}, "do not increase"),
    ],
)
def test_frames_without_a_clock_are_refused(part, words):
    with pytest.raises(DataError, match=words) as caught:
        parts(part)
    assert caught.value.code is Reason.NO_CLOCK


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (3, "it is a number"),
        ({}, "does not say what it is; give a type: text, image"),
        ({"image": "a", "video": "b"}, "does not say what it is"),
        ({"type": "audio"}, "'audio' is no known part"),
        ({"type": "text"}, "text: it is missing"),
        ({"type": "text", "text": "x", "image": "a"}, "nothing is known about 'image'"),
        ({"type": "image"}, "place 1 for an image, and the row has 0"),
        ({"type": "image", "image": 3}, "image: it is a number"),
        ({"image": "a", "url": "b"}, "it has image and url"),
        ({"image": "a", "max_pixels": 9}, "'max_pixels'; .*name it in the layout's `ignored`"),
        ({"video": "v", "vidoe_start": 1}, "did you mean video_start"),
        ({"video": "v", "fps": 2}, "fps: a video file has its own clock; .*video.fps"),
        ({"video": "v", "video_start": -1}, "stretch goes from -1.0 s to None"),
        ({"video": "v", "video_start": 2, "video_end": 2}, "0 <= video_start < video_end"),
        ({"video": "v", "video_start": "0:01"}, "video_start: it is text; it must be a number"),
        ({"video": "v", "video_end": float("nan")}, "it is nan; give a finite number"),
        ({"video": [], "fps": 1}, "it is empty; give the frames"),
    ],
)
def test_mistakes_in_parts(part, words):
    with pytest.raises(RecordError, match=rf"a.jsonl:7 messages\[0\].content\[0\].*{words}"):
        parts(part)


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        ("x", "it is text; it must be an object"),
        ({"role": "user"}, "content: it is missing"),
        ({"role": "assistant", "content": None}, "content: it is missing"),
        ({"role": "user", "content": 3}, "content: it is a number"),
        ({"role": "gpt", "content": "x"}, "'gpt' is no known role"),
        ({"content": "x"}, "role: it is missing"),
        (user("x", reasoning_content="y"), "a turn of the user; only the assistant"),
        (user("x", tool_calls=[{"name": "f"}]), "only the assistant"),
        (user("x", weigth=0), "'weigth'; did you mean weight"),
        (user("x", weight=0, train=False), "it has train and weight"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "f("}]}, "arguments: .*not JSON"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[]"}]}, "it must be an object"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": "\udc00"}}]},
         "cannot be written as JSON"),
        ({"role": "assistant", "tool_calls": [{"name": ""}]}, "name the function"),
        ({"role": "document", "content": "x"}, "a document stands among other turns"),
    ],
)  # fmt: skip
def test_mistakes_in_turns(turn, words):
    with pytest.raises(RecordError, match=rf"a.jsonl:7 messages.*{words}"):
        read(user("x"), turn)


def test_mistakes_in_rows():
    with pytest.raises(RecordError, match=r"a.jsonl:7 messages: it is empty"):
        read()
    with pytest.raises(RecordError, match=r"a.jsonl:7: 1 image\(s\) in columns .* 0 place"):
        read(user("x"), images=["a"])


def test_what_does_not_matter_may_be_ignored():
    layout = Messages(ignored=["max_pixels", "mood", "fps"])
    content = [{"image": "a.png", "max_pixels": 9}, {"video": "v", "fps": 2}]
    found = read(user(content, mood="good"), layout=layout).messages[0].parts
    assert found == (IMAGE, VideoPart(VideoFile(Path("v"))))
