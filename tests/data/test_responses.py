"""From conversation to batch: which tokens make up a response, and what a sample holds."""

import numpy as np
import pytest
import torch

from tests.samples import text_example
from vlmkit.assets import asset_path
from vlmkit.batch import IGNORED_LABEL, Modality, VLMBatch
from vlmkit.build import build, compose_config
from vlmkit.data.collate import collate
from vlmkit.data.media import ImageArray, VideoFile
from vlmkit.data.processor import Processor
from vlmkit.data.record import (
    Conversation,
    ImagePart,
    Message,
    Role,
    TextPart,
    ToolCall,
    VideoPart,
    document,
)

IMAGE = ImagePart(ImageArray(np.full((64, 64, 3), 200, dtype=np.uint8)))
VIDEO = VideoPart(VideoFile(asset_path("video", "big_buck_bunny.mp4")), 0.0, 2.0)


@pytest.fixture(scope="module", params=["instruct", "thinking"])
def processor(request) -> Processor:
    return build(compose_config("model=qwen3vl_tiny", f"template={request.param}").processor)


def say(role: Role, *parts: str | ImagePart | VideoPart, **fields) -> Message:
    written = tuple(TextPart(part) if isinstance(part, str) else part for part in parts)
    return Message(role=role, parts=written, **fields)


def batch_of(processor: Processor, *rows: list) -> VLMBatch:
    return collate(
        rows, pad_id=processor.special_tokens.pad_id, merge_size=processor.image.merge_size
    )


def responses(batch: VLMBatch, processor: Processor) -> list[str]:
    """The scored text of each response."""
    labels, ids = batch.labels.flatten(), batch.response_ids.flatten()
    assert torch.equal(ids >= 0, labels != IGNORED_LABEL)
    return [
        processor.tokenizer.decode(labels[ids == i].tolist(), skip_special_tokens=False)
        for i in range(batch.num_responses)
    ]


def test_a_response_is_the_scored_text_of_one_message(processor):
    chat = Conversation(
        messages=(
            say("user", "a?"),
            say("assistant", "One.", tool_calls=(ToolCall("f", {}),)),
            say("tool", "x", scored=True),
            say("assistant", "Two ", IMAGE, "and more."),
            say("user", "b?"),
            say("assistant", "Not scored.", scored=False),
            say("user", "c?"),
            say("assistant", "Three."),
        )
    )
    batch = batch_of(processor, [processor(chat)])
    call, result, two, three = responses(batch, processor)
    assert call.startswith("One.\n<tool_call>")
    assert call.endswith("</tool_call><|im_end|>")
    assert result.startswith("x")
    assert two == "Two and more.<|im_end|>"
    assert three.endswith("Three.<|im_end|>")  # behind an empty think block with template=thinking
    assert "Not scored" not in "".join([call, result, two, three])


def test_a_document_is_one_response_however_it_is_cut(processor):
    page = document([TextPart("."), TextPart("one"), IMAGE, TextPart("two"), IMAGE, TextPart("3")])
    chat = Conversation(messages=(say("user", "?"), say("assistant", "Yes.")))
    batch = batch_of(processor, [processor(page), processor(chat)], [processor(page)])
    found = responses(batch, processor)
    assert len(found) == 3
    assert found[0] == found[2]
    assert found[0].endswith("two3<|endoftext|>")
    assert found[1].endswith("Yes.<|im_end|>")


def test_samples_are_numbered_by_modality(processor):
    holds = {
        Modality.TEXT: (),
        Modality.IMAGE: (IMAGE,),
        Modality.VIDEO: (VIDEO,),
        Modality.MIXED: (VIDEO, IMAGE),
    }
    chats = [
        Conversation(messages=(say("user", *media, "?"), say("assistant", "x")))
        for media in holds.values()
    ]
    batch = batch_of(processor, [processor(chat) for chat in chats], [text_example(0)])
    assert batch.modality_ids.tolist() == [*holds, -1]
