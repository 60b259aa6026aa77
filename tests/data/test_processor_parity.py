"""Whole conversations against the Qwen3VLProcessor of transformers: tokens, grids, pixels, positions.

One difference is meant: transformers 5 keeps the `<|vision_start|>` and `<|vision_end|>` of the chat
template around the timestamps and frames of a video, which the released models were not trained with.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.data.test_template import for_jinja
from vlmkit.assets import asset_path
from vlmkit.build import build, build_model, compose_config
from vlmkit.checkpoint.chat_template import published_template
from vlmkit.data.collate import collate
from vlmkit.data.media import FrameSequence, ImageArray, VideoFile, VideoRef
from vlmkit.data.processor import Example, Processor
from vlmkit.data.record import (
    Conversation,
    ImagePart,
    Message,
    Part,
    TextPart,
    ToolCall,
    VideoPart,
)
from vlmkit.data.template import InstructTemplate, ThinkingTemplate
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.pretrained import save_pretrained

pytest.importorskip("transformers")

BUNNY = VideoFile(asset_path("video", "big_buck_bunny.mp4"))
BUNNY_FPS = 25
WHOLE_VOCABULARY = ("size.vocab_ranks=151643", "size.vocab_size=151936")
BUDGETS = (  # small, so that random pictures meet all of them
    "processor.image.min_pixels=8192",
    "processor.image.max_pixels=65536",
    "processor.video.min_pixels=16384",
    "processor.video.max_pixels=262144",
)
TEXTS = [
    "What?",
    " <",
    "\n",
    "2 x 3.5 ",
    "猫头鹰",
    "a\n\n",
    "  ",
    "<b>it's</b>",
    "1.",
    "ß",
    "seconds>",
]


@pytest.fixture(scope="module")
def ours() -> Processor:
    processor: Processor = build(
        compose_config("model=qwen3vl_tiny", *WHOLE_VOCABULARY, *BUDGETS).processor
    )
    return processor


@pytest.fixture(scope="module")
def theirs(ours: Processor, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Read from the files that we write."""
    from transformers import AutoProcessor

    folder = tmp_path_factory.mktemp("checkpoint")
    model = build_model("model=qwen3vl_tiny", *WHOLE_VOCABULARY)
    assert isinstance(model, Qwen3VL)
    save_pretrained(model, folder / "out", processor=ours)
    processor = AutoProcessor.from_pretrained(folder / "out")
    assert type(processor).__name__ == "Qwen3VLProcessor"
    return processor


@pytest.fixture(scope="module")
def rope_model(ours: Processor) -> Any:
    from tests.checkpoint.toy import toy_model

    tokens = ours.special_tokens
    return toy_model(
        image_token_id=tokens.image_id,
        video_token_id=tokens.video_id,
        vision_start_token_id=tokens.vision_start_id,
        vision_end_token_id=tokens.vision_end_id,
    ).model


@pytest.fixture(scope="module")
def bunny(ours: Processor) -> NDArray[np.uint8]:
    """All frames."""
    reader = ours.video.open_reader(BUNNY)
    return reader.get(range(reader.num_frames))


def noise(rng: random.Random, height: int, width: int) -> NDArray[np.uint8]:
    """With detail at every scale, so that resampling matters."""
    generator = np.random.default_rng(rng.randrange(2**32))
    fine = generator.integers(0, 256, (height, width, 3))
    coarse = generator.integers(0, 256, (height // 9 + 1, width // 9 + 1, 3))
    coarse = coarse.repeat(9, 0).repeat(9, 1)[:height, :width]
    return ((fine + coarse) // 2).astype(np.uint8)


def picture(rng: random.Random) -> ImagePart:
    return ImagePart(ImageArray(noise(rng, rng.randint(9, 400), rng.randint(9, 400))))


def video(rng: random.Random) -> VideoPart:
    """The clip, a stretch of it, or noise at some rate."""
    kind = rng.choice(["whole", "stretch", "frames"])
    if kind == "whole":
        return VideoPart(BUNNY)
    if kind == "stretch":
        first = rng.randint(0, 60)
        return VideoPart(BUNNY, first / BUNNY_FPS, (first + rng.randint(10, 70)) / BUNNY_FPS)
    height, width = rng.randint(20, 150), rng.randint(20, 150)
    frames = tuple(ImageArray(noise(rng, height, width)) for _ in range(rng.randint(2, 30)))
    return VideoPart(FrameSequence.at_fps(frames, rng.choice([1, 2, 5, 24, 30]), "noise"))


def parts(rng: random.Random, most_media: int = 3) -> tuple[Part, ...]:
    mixed: list[Part] = [TextPart(rng.choice(TEXTS)) for _ in range(rng.randint(1, 4))]
    for _ in range(rng.randint(0, most_media)):
        part = picture(rng) if rng.random() < 0.6 else video(rng)
        mixed.insert(rng.randint(0, len(mixed)), part)
    return tuple(mixed)


def random_conversation(rng: random.Random) -> Conversation:
    messages = []
    if rng.random() < 0.5:
        messages.append(Message(role="system", parts=parts(rng, most_media=0)))
    for _ in range(rng.randint(1, 3)):
        messages.append(Message(role="user", parts=parts(rng)))
        if rng.random() < 0.4:
            calls = (ToolCall("zoom", {"box": [1, 2.5], "why": "é"}), ToolCall("zoom", "{}"))
            call = Message(
                role="assistant", parts=parts(rng, 0), tool_calls=calls, thinking="Closer."
            )
            messages.append(call)
            messages += [Message(role="tool", parts=parts(rng)) for _ in range(rng.randint(1, 2))]
        thinking = rng.choice([None, "It has feathers.\n"])
        messages.append(Message(role="assistant", parts=parts(rng, 0), thinking=thinking))
    tools = ({"name": "zoom", "parameters": {"box": "0–1000"}},)
    return Conversation(messages=tuple(messages), tools=tools if rng.random() < 0.5 else ())


class Transformers:
    """Their processor, fed with the same conversations."""

    def __init__(self, processor: Any, bunny: NDArray[np.uint8]) -> None:
        self.processor = processor
        self.bunny = bunny

    def prompt(self, conversation: Conversation, template: Any, for_generation: bool) -> str:
        prompt: str = self.processor.apply_chat_template(
            [for_jinja(message, as_string=False) for message in conversation.messages],
            tools=list(conversation.tools) or None,
            chat_template=published_template(template),
            add_generation_prompt=for_generation,
        )
        return prompt

    def __call__(self, prompt: str, conversation: Conversation) -> dict[str, Tensor]:
        images, videos, times = [], [], []
        for part in conversation.parts:
            if isinstance(part, ImagePart):
                images.append(part.image.open())
            elif isinstance(part, VideoPart):
                frames, fps = self._frames(part.video)
                first, stop = (
                    default if time is None else round(time * fps)
                    for time, default in ((part.start_s, 0), (part.end_s, len(frames)))
                )
                videos.append(frames[first:stop])
                times.append({"total_num_frames": stop - first, "fps": fps})
        inputs: dict[str, Tensor] = self.processor(
            text=[prompt],
            images=images or None,
            videos=videos or None,
            video_metadata=times or None,
            do_sample_frames=True,
            cap_pixels_per_frame=False,
            return_tensors="pt",
        )
        return inputs

    def _frames(self, ref: VideoRef) -> tuple[NDArray[np.uint8], float]:
        if not isinstance(ref, FrameSequence):
            return self.bunny, float(BUNNY_FPS)
        fps = 1 / (ref.times_s[1] - ref.times_s[0])
        return np.stack([np.asarray(frame.open()) for frame in ref.frames]), fps


OUTER_PAIR = "<|vision_start|><|video_pad|><|vision_end|>"


def media_of(example: Example, conversation: Conversation, kind: type) -> tuple[Any, Tensor]:
    """Grids and patches of the pictures or of the videos."""
    kinds = [type(part) for part in conversation.parts if isinstance(part, ImagePart | VideoPart)]
    runs = example.patches.split([t * h * w for t, h, w in example.grids])
    grids = [list(grid) for grid, of in zip(example.grids, kinds, strict=True) if of is kind]
    chosen = [run for run, of in zip(runs, kinds, strict=True) if of is kind]
    return grids, torch.cat(chosen) if chosen else torch.zeros(0)


@pytest.mark.parametrize("seed", range(30))
def test_conversations_equal_those_of_transformers(
    seed: int, ours: Processor, theirs: Any, rope_model: Any, bunny: NDArray[np.uint8]
) -> None:
    """Measured difference of pixels: none, bit for bit."""
    rng = random.Random(seed)
    conversation = random_conversation(rng)
    for_generation, labels = rng.random() < 0.3, rng.random() < 0.3
    template = rng.choice([InstructTemplate, ThinkingTemplate])(add_vision_id=labels)
    sampling = {"fps": rng.choice([0.5, 1.0, 2.0, 4.0]), "max_frames": rng.choice([4, 7, 768])}
    video = replace(ours.video, **sampling)
    processor = Processor(ours.tokenizer, template, ours.temporal, ours.image, video)
    for name, value in sampling.items():
        setattr(theirs.video_processor, name, value)

    reference = Transformers(theirs, bunny)
    prompt = reference.prompt(conversation, template, for_generation)
    num_videos = prompt.count(OUTER_PAIR)
    assert num_videos == sum(isinstance(part, VideoPart) for part in conversation.parts)
    expected = reference(prompt.replace(OUTER_PAIR, "<|video_pad|>"), conversation)

    example = processor(conversation, for_generation)
    batch = collate([[example]], pad_id=ours.special_tokens.pad_id, merge_size=2)
    assert batch.input_ids.tolist() == expected["input_ids"].tolist()
    grids = {name: expected.get(f"{name}_grid_thw") for name in ("image", "video")}
    for name, kind, pixels in (
        ("image", ImagePart, "pixel_values"),
        ("video", VideoPart, "pixel_values_videos"),
    ):
        found_grids, found = media_of(example, conversation, kind)
        grid = grids[name]
        assert found_grids == ([] if grid is None else grid.tolist())
        if grid is not None:
            assert torch.equal(found, expected[pixels])
    positions, _ = rope_model.get_rope_index(
        input_ids=expected["input_ids"],
        mm_token_type_ids=expected["mm_token_type_ids"],
        image_grid_thw=grids["image"],
        video_grid_thw=grids["video"],
        attention_mask=expected["attention_mask"],
    )
    assert torch.equal(batch.position_ids, positions)


def test_the_outer_pair_around_videos_is_the_only_difference(
    ours: Processor, theirs: Any, bunny: NDArray[np.uint8]
) -> None:
    """Nothing is replaced here: of their tokens, two fall away for each video.

    Letters stand before the videos: punctuation would merge with the `<` of a timestamp once the marker
    between them is gone.
    """
    for name in ("fps", "max_frames"):
        setattr(theirs.video_processor, name, getattr(ours.video, name))
    asked = Message(role="user", parts=(VideoPart(BUNNY), TextPart("One"), VideoPart(BUNNY)))
    conversation = Conversation(messages=(asked,))
    reference = Transformers(theirs, bunny)
    prompt = reference.prompt(conversation, ours.template, for_generation=True)
    expected = reference(prompt, conversation)["input_ids"][0].tolist()
    example = ours(conversation, for_generation=True)
    batch = collate([[example]], pad_id=ours.special_tokens.pad_id, merge_size=2)
    found = batch.input_ids[0].tolist()

    start, end = ours.special_tokens.vision_start_id, ours.special_tokens.vision_end_id
    visual = ours.special_tokens.video_id
    without = [
        token
        for i, token in enumerate(expected)
        if not (token == start and expected[i + 1] != visual)
        and not (token == end and expected[i - 1] != visual)
    ]
    assert len(expected) - len(without) == 2 * 2
    assert found == without
