"""Template, tokens, labels and layout of a processed conversation."""

import numpy as np
import pytest
from PIL import Image

from vlmkit.assets import asset_path
from vlmkit.build import build, compose_config
from vlmkit.data.media import ImageArray, ImageFile, VideoFile
from vlmkit.data.processor import Processor
from vlmkit.data.record import Conversation, ImagePart, Message, TextPart, VideoPart
from vlmkit.data.template import InstructTemplate, TextPiece
from vlmkit.errors import MediaError
from vlmkit.sequence import TextSpan, VisionSpan

PICTURE = ImagePart(ImageArray(np.full((64, 96, 3), 200, dtype=np.uint8)))
CLIP = VideoPart(VideoFile(asset_path("video", "big_buck_bunny.mp4")))


@pytest.fixture(scope="module")
def processor() -> Processor:
    return build(compose_config("model=qwen3vl_tiny").processor)


def talk(*turns) -> Conversation:
    return Conversation(
        messages=tuple(
            Message(role=role, parts=tuple(TextPart(p) if isinstance(p, str) else p for p in parts))
            for role, *parts in turns
        )
    )


def written(processor: Processor, example) -> str:
    """The sequence as text, a visual run as [rows x columns x patches]."""
    parts = []
    for span in example.spans:
        if isinstance(span, TextSpan):
            parts.append(
                processor.tokenizer.decode(list(span.token_ids), skip_special_tokens=False)
            )
        else:
            parts.append(f"[{span.rows}x{span.columns}x{len(span.time_offsets)}]")
    return "".join(parts)


def test_golden_prompt(processor):
    example = processor(
        talk(("system", "Be brief."), ("user", PICTURE, "What is this?"), ("assistant", "A cat."))
    )
    assert written(processor, example) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|>[2x3x1]<|vision_end|>What is this?<|im_end|>\n"
        "<|im_start|>assistant\nA cat.<|im_end|>\n"
    )
    assert example.grids == ((1, 4, 6),)
    assert example.patches.shape == (24, 1536)


def test_scored_tokens_are_the_answers_and_their_end_marks(processor):
    example = processor(
        talk(
            ("user", PICTURE, "One?"), ("assistant", "Yes."), ("user", "Two?"), ("assistant", "No.")
        )
    )
    scored = [
        processor.tokenizer.decode(list(span.token_ids), skip_special_tokens=False)
        for span in example.spans
        if isinstance(span, TextSpan) and span.scored
    ]
    assert scored == ["Yes.<|im_end|>", "No.<|im_end|>"]


def test_answers_that_contain_marker_text_do_not_move_the_mask(processor):
    """Labels come from the turns; a user who writes 'assistant' is not scored."""
    example = processor(talk(("user", "assistant\nNo."), ("assistant", "assistant")))
    scored = [span for span in example.spans if isinstance(span, TextSpan) and span.scored]
    assert len(scored) == 1
    text = processor.tokenizer.decode(list(scored[0].token_ids), skip_special_tokens=False)
    assert text == "assistant<|im_end|>"


def test_prompt_for_generation_ends_with_an_open_turn(processor):
    example = processor(talk(("user", "Hi")), for_generation=True)
    assert written(processor, example).endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert not any(span.scored for span in example.spans if isinstance(span, TextSpan))


def test_tokens_equal_those_of_the_whole_string(processor):
    """Splitting by turns and scores never changes the tokenisation."""
    example = processor(talk(("user", "a  b\n"), ("assistant", "\n\n c d"), ("user", " e")))
    ids = [token for span in example.spans for token in span.token_ids]
    whole = "<|im_start|>user\na  b\n<|im_end|>\n<|im_start|>assistant\n\n\n c d<|im_end|>\n"
    whole += "<|im_start|>user\n e<|im_end|>\n"
    assert ids == processor.tokenizer.encode(whole, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("temporal", "runs", "timestamps"),
    [
        ("text_seconds", 5, "seconds>"),
        ("text_hms", 5, "<00:00:0"),
        ("t_rope", 1, ""),
        ("index", 1, ""),
    ],
)
def test_video_layouts(temporal, runs, timestamps):
    config = compose_config(
        "model=qwen3vl_tiny", f"temporal={temporal}", "processor.video.max_frames=10"
    )
    processor = build(config.processor)
    example = processor(talk(("user", CLIP, "What happens?"), ("assistant", "It yawns.")))
    visual = [span for span in example.spans if isinstance(span, VisionSpan)]
    assert len(visual) == runs
    time, rows, columns = example.grids[0]
    assert sum(span.num_tokens for span in visual) == time * rows * columns // 4
    assert timestamps in written(processor, example)


def test_vision_ids_count_over_the_conversation():
    pieces = InstructTemplate(add_vision_id=True).render(
        talk(("user", PICTURE, CLIP, PICTURE, "x"), ("assistant", "y"), ("user", CLIP))
    )
    labels = [p.text for p in pieces if isinstance(p, TextPiece) and p.text.endswith(": ")]
    assert labels == ["Picture 1: ", "Video 1: ", "Picture 2: ", "Video 2: "]


def test_broken_pictures_are_named(processor, tmp_path):
    whole = tmp_path / "whole.jpg"
    Image.new("RGB", (64, 64), "red").save(whole)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(whole.read_bytes()[:300])
    words = tmp_path / "words.png"
    words.write_text("not a picture")
    for path, reason in (
        (broken, "cannot be decoded"),
        (words, "cannot be decoded"),
        (tmp_path / "absent.png", "file not found"),
    ):
        with pytest.raises(MediaError, match=f"{path.name}.*{reason}"):
            processor(talk(("user", ImagePart(ImageFile(path)), "?")))


def test_pictures_open_as_they_are_shown(tmp_path):
    """Turned by EXIF, transparent on white, 16-bit grey without clipping."""
    pixels = np.zeros((4, 8, 3), dtype=np.uint8)
    pixels[:, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    turned = np.asarray(ImageFile(tmp_path / "turned.png").open())
    assert turned.shape == (8, 4, 3)
    assert turned[0, 0, 0] == 255
    assert turned[-1, 0, 0] == 0

    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.asarray(ImageFile(tmp_path / "clear.png").open()).min() == 255

    deep = np.array([[0, 32_896, 65_535]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.asarray(ImageFile(tmp_path / "deep.png").open())[0, :, 0].tolist() == [0, 128, 255]
