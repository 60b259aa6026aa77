"""Random rows and conversations, and ways to write them to disk."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from PIL import Image

from vlmkit.data.geometry.shapes import Box, Grounding, Picture, Point, Relative1000
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

TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20
)
"""Any characters but halves of them."""

PATHS = st.sampled_from(["a.jpg", "b/c.png", "ä 1.webp"])


def png(size: tuple[int, int] = (4, 3), color: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


def write_lines(path: Path, rows: list[Any], newline: str = "\n") -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + newline for row in rows)
    path.write_bytes(text.encode())
    return path


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as shard:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    return path


def as_row(conversation: Conversation) -> dict[str, Any]:
    """A conversation in the layout of `Messages`."""
    row: dict[str, Any] = {"messages": [_turn(message) for message in conversation.messages]}
    if conversation.tools:
        row["tools"] = list(conversation.tools)
    return row | conversation.meta


def _turn(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role}
    if message.parts or not message.tool_calls:
        turn["content"] = [_part(part) for part in message.parts]
    if message.scored is not None:
        turn["scored"] = message.scored
    if message.thinking is not None:
        turn["reasoning_content"] = message.thinking
    if message.tool_calls:
        turn["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return turn


def _part(part: Part) -> dict[str, Any]:
    match part:
        case TextPart():
            return {"type": "text", "text": part.text}
        case ImagePart():
            return {"type": "image", "image": part.image.name}
        case VideoPart(video=FrameSequence() as frames):
            names = [frame.name for frame in frames.frames]
            return {"type": "video", "video": names, "times": list(frames.times_s)}
        case VideoPart():
            stretch = {"video_start": part.start_s, "video_end": part.end_s}
            return {"type": "video", "video": part.video.name} | {
                key: value for key, value in stretch.items() if value is not None
            }
        case GroundingPart():
            return {
                "type": "boxes",
                "image": part.image,
                "space": "relative_1000",
                "objects": [_object(item) for item in part.items],
            }
    raise AssertionError(part)


def _object(item: Grounding) -> dict[str, Any]:
    assert isinstance(item.shape, Box | Point)
    kind = "bbox_2d" if isinstance(item.shape, Box) else "point_2d"
    return {kind: list(item.shape.coordinates), "label": item.label}


@st.composite
def messages(draw: st.DrawFn) -> Message:
    role = draw(st.sampled_from(["system", "user", "assistant", "tool"]))
    texts = st.builds(TextPart, TEXT)
    images = st.builds(ImagePart, st.builds(lambda p: ImageFile(Path(p)), PATHS))
    clips = st.builds(
        lambda start, length: VideoPart(VideoFile(Path("v.mp4")), start, start + length),
        st.integers(0, 9).map(float),
        st.integers(1, 9).map(float),
    )
    frames = st.lists(st.builds(lambda p: ImageFile(Path(p)), PATHS), min_size=1, max_size=3).map(
        lambda f: VideoPart(FrameSequence(tuple(f), tuple(float(i) for i in range(len(f)))))
    )
    assistant = role == "assistant"
    parts = draw(
        st.lists(texts if assistant else st.one_of(texts, images, clips, frames), max_size=3)
    )
    arguments = st.dictionaries(TEXT, st.integers() | TEXT, max_size=2)
    calls = st.lists(st.builds(ToolCall, TEXT, arguments | arguments.map(json.dumps)), max_size=2)
    return Message(
        role=role,
        parts=tuple(parts),
        scored=draw(st.sampled_from([None, True, False])),
        thinking=draw(st.none() | TEXT) if assistant else None,
        tool_calls=tuple(draw(calls)) if assistant else (),
    )


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    turns = draw(st.lists(messages(), min_size=1, max_size=4))
    num_images = sum(isinstance(part, ImagePart) for turn in turns for part in turn.parts)
    if num_images and draw(st.booleans()):
        number = draw(st.integers(0, num_images - 1))
        space = Relative1000(on=Picture(number))
        items = (Grounding(Box(1, 2, 3, 4, space), "a"), Grounding(Point(5, 6, space), draw(TEXT)))
        turns.append(Message(role="assistant", parts=(GroundingPart(items, number),)))
    tools = draw(st.lists(st.dictionaries(TEXT, TEXT, min_size=1), max_size=2))
    meta = draw(st.dictionaries(st.sampled_from(["id", "score"]), TEXT | st.integers(0, 9)))
    return Conversation(messages=tuple(turns), tools=tuple(tools), meta=meta)
