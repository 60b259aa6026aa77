"""Saving: all of a folder or nothing, and the files beside the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer

from vlmkit.build import build_model
from vlmkit.data.collate import collate
from vlmkit.data.media import ImageFile
from vlmkit.data.record import Conversation, ImagePart, Message, TextPart
from vlmkit.data.tokenizer import build_qwen_tokenizer
from vlmkit.errors import CheckpointError
from vlmkit.models.hf_batch import batch_from_hf
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.pretrained import load_pretrained, load_processor, save_pretrained


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def tiny() -> Qwen3VL:
    model = build_model("model=qwen3vl_tiny")
    assert isinstance(model, Qwen3VL)
    return model


def test_an_existing_folder_is_kept_unless_asked(tmp_path: Path) -> None:
    target, model = tmp_path / "out", tiny()
    save_pretrained(model, target)
    with pytest.raises(CheckpointError, match=r"out exists and is not empty: pass overwrite"):
        save_pretrained(model, target)
    with torch.no_grad():
        model.decoder.norm.weight.fill_(7.0)
    save_pretrained(model, target, overwrite=True)
    assert load_pretrained(target).decoder.norm.weight[0] == 7.0
    assert names_in(tmp_path) == {"out"}

    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"not replaced, overwrite or not"):
        save_pretrained(model, precious, overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        save_pretrained(model, tmp_path / "file", overwrite=True)


@pytest.mark.parametrize("error", [OSError("no space left on device"), KeyboardInterrupt()])
def test_an_error_leaves_nothing_half_written(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, model = tmp_path / "out", tiny()
    save_pretrained(model, target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    calls = []

    def fail_at_the_third(*args: Any, **kwargs: Any) -> None:
        calls.append(args)
        if len(calls) == 3:
            raise error
        save_file(*args, **kwargs)

    monkeypatch.setattr("vlmkit.checkpoint.save.save_file", fail_at_the_third)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else CheckpointError
    for folder, overwrite in ((tmp_path / "new", False), (target, True)):
        calls.clear()
        with pytest.raises(expected):
            save_pretrained(model, folder, max_shard_gb=1e-4, overwrite=overwrite)
    assert names_in(tmp_path) == {"out"}
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before


def test_a_model_without_values_is_not_saved(tmp_path: Path) -> None:
    model = build_model("model=qwen3vl_tiny", device="meta")
    with pytest.raises(CheckpointError, match="on meta"):
        save_pretrained(model, tmp_path / "out")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


WEIGHTS_ONLY = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
}
WITH_TOKENIZER = WEIGHTS_ONLY | {
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
}


def test_a_cut_vocabulary_has_no_tokenizer_unless_given(tmp_path: Path) -> None:
    save_pretrained(tiny(), tmp_path / "without")
    assert names_in(tmp_path / "without") == WEIGHTS_ONLY
    save_pretrained(tiny(), tmp_path / "with", tokenizer=build_qwen_tokenizer(998))
    assert names_in(tmp_path / "with") == WITH_TOKENIZER
    modes = {path.stat().st_mode for path in (tmp_path / "with").iterdir()}
    assert len(modes) == 1  # whoever may read the config may read the weights


def test_the_full_vocabulary_brings_its_tokenizer(tmp_path: Path) -> None:
    model = build_model("model=qwen3vl_tiny", "size.vocab_ranks=151643", "size.vocab_size=151936")
    save_pretrained(model, tmp_path / "out")  # type: ignore[arg-type]
    assert names_in(tmp_path / "out") == WITH_TOKENIZER
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert tokenizer.encode("assistant").ids == [77091]
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {
        "bos_token_id": 151643,
        "pad_token_id": 151643,
        "do_sample": True,
        "eos_token_id": [151645, 151643],
        "top_k": 20,
        "top_p": 0.8,
        "repetition_penalty": 1.0,
        "temperature": 0.7,
    }


def test_transformers_reads_processor_and_tokenizer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = build_qwen_tokenizer(998)
    save_pretrained(tiny(), tmp_path / "out", tokenizer=tokenizer)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    assert type(processor).__name__ == "Qwen3VLProcessor"
    text = "<|im_start|>user\nWie groß? 123 <think>no</think><|im_end|>"
    assert processor.tokenizer(text)["input_ids"] == tokenizer.encode(text).ids
    special = tiny().special_tokens
    assert processor.tokenizer.eos_token_id == special.im_end_id
    assert processor.tokenizer.pad_token_id == special.pad_id
    assert processor.image_token_id == special.image_id
    assert (
        processor.chat_template
        == json.loads((tmp_path / "out" / "chat_template.json").read_text())["chat_template"]
    )

    picture = np.zeros((300, 400, 3), dtype=np.uint8)
    inputs = processor(text="<|image_pad|>", images=[picture], return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 18, 24]]
    assert inputs["pixel_values"].shape == (432, 1536)
    clip = np.zeros((16, 480, 640, 3), dtype=np.uint8)
    inputs = processor.video_processor([clip], do_sample_frames=False, return_tensors="pt")
    assert inputs["video_grid_thw"].tolist() == [[8, 30, 40]]


def test_our_processor_agrees_with_that_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    save_pretrained(tiny(), tmp_path / "out", tokenizer=build_qwen_tokenizer(998))
    theirs = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    ours = load_processor(tmp_path / "out")

    picture = np.random.default_rng(0).integers(0, 256, (256, 320, 3), dtype=np.uint8)
    image = ImagePart(ImageFile(tmp_path / "picture.png"))
    Image.fromarray(picture).save(tmp_path / "picture.png")
    turn = Message(role="user", parts=(image, TextPart("What is this?")))
    example = ours(Conversation(messages=(turn,)), for_generation=True)

    content = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    prompt = theirs.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    expected = theirs(text=[prompt], images=[picture], return_tensors="pt")
    assert torch.allclose(example.patches, expected["pixel_values"], atol=1e-6)
    batch = collate([[example]], pad_id=tiny().special_tokens.pad_id, merge_size=2)
    moved = batch_from_hf(expected, tiny().special_tokens)
    assert torch.equal(batch.input_ids, moved.input_ids)
    assert torch.equal(batch.position_ids, moved.position_ids)


def test_processor_settings_are_the_checkpoint_s_own(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    save_pretrained(tiny(), folder, tokenizer=build_qwen_tokenizer(998))
    released = load_processor(folder)
    assert (released.image.min_pixels, released.image.max_pixels) == (65_536, 16_777_216)
    assert (released.video.min_pixels, released.video.max_pixels) == (4_096, 25_165_824)

    path = folder / "video_preprocessor_config.json"
    path.write_text(json.dumps({"size": {"longest_edge": 999_424}, "fps": 1, "max_frames": 32}))
    video = load_processor(folder).video
    assert (video.max_pixels, video.min_pixels, video.fps) == (999_424, 4_096, 1)
    assert (video.min_frames, video.max_frames) == (4, 32)

    path.write_text(json.dumps({"image_mean": [0.4, 0.5, 0.5], "image_std": [1, 1, 1]}))
    video = load_processor(folder).video
    assert (video.mean, video.std) == ([0.4, 0.5, 0.5], [1.0, 1.0, 1.0])
    assert tuple(load_processor(folder).image.mean) == (0.5, 0.5, 0.5)
    path.unlink()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        load_processor(folder)


def test_areas_at_the_top_level_count_where_transformers_counts_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    transformers = pytest.importorskip("transformers")
    save_pretrained(tiny(), tmp_path, tokenizer=build_qwen_tokenizer(998), overwrite=True)
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        settings = json.loads((tmp_path / name).read_text())
        (tmp_path / name).write_text(
            json.dumps({**settings, "min_pixels": 8192, "max_pixels": 9216})
        )
    ours, theirs = load_processor(tmp_path), transformers.AutoProcessor.from_pretrained(tmp_path)
    image, video = theirs.image_processor.size, theirs.video_processor.size
    assert (ours.image.min_pixels, ours.image.max_pixels) == (8192, 9216)
    assert (image.shortest_edge, image.longest_edge) == (8192, 9216)
    assert (ours.video.min_pixels, ours.video.max_pixels) == (4_096, 25_165_824)
    assert (video.shortest_edge, video.longest_edge) == (4_096, 25_165_824)
    assert "max_pixels is ignored for videos" in caplog.text


def test_of_several_files_the_one_that_transformers_reads_counts(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    save_pretrained(tiny(), tmp_path, tokenizer=build_qwen_tokenizer(998), overwrite=True)

    def state(name: str, longest: int, key: str | None = None) -> None:
        settings = {"size": {"shortest_edge": 4096, "longest_edge": longest}, "patch_size": 16}
        (tmp_path / name).write_text(json.dumps({key: settings} if key else settings))

    def longest() -> tuple[int, int]:
        ours = load_processor(tmp_path)
        folder = str(tmp_path)
        images = transformers.Qwen2VLImageProcessor.from_pretrained(folder).size
        videos = transformers.Qwen3VLVideoProcessor.from_pretrained(folder).size
        assert ours.image.max_pixels == images.longest_edge
        assert ours.video.max_pixels == videos.longest_edge
        return ours.image.max_pixels, ours.video.max_pixels

    state("preprocessor_config.json", 10_000)
    state("video_preprocessor_config.json", 20_000)
    assert longest() == (10_000, 20_000)
    state("processor_config.json", 30_000, key="video_processor")
    assert longest() == (10_000, 30_000)
    (tmp_path / "processor_config.json").unlink()
    (tmp_path / "video_preprocessor_config.json").unlink()
    assert longest() == (10_000, 10_000)


def test_settings_as_transformers_writes_them_are_read(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    save_pretrained(tiny(), tmp_path / "ours", tokenizer=build_qwen_tokenizer(998))
    theirs = transformers.AutoProcessor.from_pretrained(tmp_path / "ours")
    theirs.image_processor.size["longest_edge"] = 123_456
    save_pretrained(tiny(), tmp_path / "theirs", tokenizer=build_qwen_tokenizer(998))
    theirs.save_pretrained(tmp_path / "theirs")
    assert load_processor(tmp_path / "theirs").image.max_pixels == 123_456


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"do_normalize": False}, "do_normalize is false, vlmkit supports only true"),
        ({"resample": 2}, "resample is 2, vlmkit supports only 3"),
        ({"num_frames": 8}, "num_frames is 8, vlmkit supports only null"),
        (
            {"cap_pixels_per_frame": True},
            "cap_pixels_per_frame is true, vlmkit supports only false",
        ),
        ({"image_mean": 0.5}, "image_mean must be a list of numbers, it is 0.5"),
        ({"max_frames": "all"}, 'max_frames must be a number, it is "all"'),
    ],
)
def test_settings_that_vlmkit_cannot_follow_are_refused(
    settings: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    save_pretrained(tiny(), tmp_path / "out", tokenizer=build_qwen_tokenizer(998))
    (tmp_path / "out" / "video_preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=f"video_preprocessor_config.json: {reason}"):
        load_processor(tmp_path / "out")


NEARLY_THINKING = (  # it leaves newlines after the reasoning that it strips
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content.split('</think>')[-1] }}{% else %}"
    "{% for part in message.content %}"
    "{{ part.text or '<|vision_start|><|image_pad|><|vision_end|>' }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            NEARLY_THINKING,
            r"prompts end with <think> (template=thinking may be nearer): it writes '",
        ),
        ("<|im_start|>system\nBe kind.<|im_end|>", "writes 'system"),
        ("{% nonsense %}", "cannot be rendered (TemplateSyntaxError"),
    ],
)
def test_another_chat_template_than_the_released_ones_is_mentioned(
    template: str, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "out"
    save_pretrained(tiny(), folder, tokenizer=build_qwen_tokenizer(998))
    load_processor(folder)
    assert not caplog.text
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    load_processor(folder)
    assert reason in caplog.text
    assert "as for Instruct" in caplog.text or "as for the Instruct models" in caplog.text

    caplog.clear()
    (folder / "chat_template.json").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = [{"name": "default", "template": template}]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    load_processor(folder)
    assert reason in caplog.text
