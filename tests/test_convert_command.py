"""`python -m vlmkit.convert`, as a user calls it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.checkpoint.toy import save_toy, transformers
from tests.commands import run_command
from tests.untrained import save_run
from vlmkit import convert
from vlmkit.assets import asset_path
from vlmkit.checkpoint.parity_cases import CASES, InputSpec, make_inputs
from vlmkit.data.collate import collate
from vlmkit.data.media import ImageFile, VideoFile
from vlmkit.data.processor import Example
from vlmkit.data.record import Conversation, ImagePart, Message, TextPart, VideoPart
from vlmkit.models.hf_batch import batch_from_hf
from vlmkit.pretrained import load_pretrained, load_processor, save_pretrained
from vlmkit.runs import load_run

command = partial(run_command, convert.main)


def test_experts_of_transformers_5_become_those_of_the_hub(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    save_toy(source, moe=True, shard="200KB")
    (source / "chat_template.jinja").write_text("of the source")
    (source / "generation_config.json").write_text('{"temperature": 0.1}')
    (source / "tokenizer.json").write_text("{}")
    (source / "modeling_custom.py").write_text("raise SystemExit")
    assert command(f"input={source}", f"output={target}") == 0

    tensors = load_file(target / "model.safetensors")
    prefix = "model.language_model.layers.0.mlp.experts"
    assert tensors[f"{prefix}.gate_up_proj"].shape == (6, 64, 48)
    assert tensors[f"{prefix}.down_proj"].shape == (6, 24, 64)
    text = json.loads((target / "config.json").read_text())["text_config"]
    assert text["num_experts"] == 6
    assert text["rope_theta"] == 5_000_000
    assert not {"num_local_experts", "rope_parameters"} & text.keys()
    before, after = (
        dict(load_pretrained(folder).named_parameters()) for folder in (source, target)
    )
    assert all(torch.equal(before[name], after[name]) for name in before)

    # what stands beside the weights is the source's own, code excepted
    assert (target / "chat_template.jinja").read_text() == "of the source"
    assert json.loads((target / "generation_config.json").read_text()) == {"temperature": 0.1}
    assert (target / "tokenizer.json").read_text() == "{}"
    assert not (target / "modeling_custom.py").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}


def test_a_run_is_converted_without_holding_its_weights(tmp_path: Path) -> None:
    save_run(tmp_path / "run")
    source = convert.from_run(tmp_path / "run", torch.bfloat16)
    assert all(parameter.is_meta for parameter in source.model.parameters())
    convert.write(source, tmp_path / "out", max_shard_gb=0.0003)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    expected = load_run(tmp_path / "run").model.bfloat16().state_dict()
    found = load_pretrained(tmp_path / "out").state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_dtype_shards_and_overwriting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    save_toy(source, tie_word_embeddings=True)
    arguments = (f"input={source}", f"output={target}")
    assert command(*arguments, "dtype=bfloat16", "max_shard_gb=0.0002") == 0
    files = sorted(target.glob("*.safetensors"))
    assert len(files) > 2
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in tensors
    config = json.loads((target / "config.json").read_text())
    assert config["text_config"]["dtype"] == "bfloat16"

    assert command(*arguments) == 2
    assert "pass overwrite=true" in capsys.readouterr().err
    assert command(*arguments, "overwrite=true") == 0
    assert not list(target.glob("model-*"))
    assert load_pretrained(target).decoder.norm.weight.dtype == torch.float32


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(f"input={tmp_path}") == 2
    assert (
        "give input=<folder or hub repository> or run=<run folder>, and output=<folder>"
        in capsys.readouterr().err
    )
    assert command(f"input={tmp_path}", f"output={tmp_path / 'out'}") == 2
    assert "config.json is missing" in capsys.readouterr().err
    assert command(f"input={tmp_path}", f"output={tmp_path / 'out'}", "dtype=int4") == 2
    assert "choose one of float32" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_merged_processor_file_of_transformers_5_is_split(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    save_toy(source)
    merged = {
        "image_processor": {"size": {"longest_edge": 99_999}},
        "video_processor": {"fps": 1.0},
    }
    (source / "processor_config.json").write_text(json.dumps(merged))
    assert command(f"input={source}", f"output={target}") == 0
    for name, part in (("", "image_processor"), ("video_", "video_processor")):
        written = json.loads((target / f"{name}preprocessor_config.json").read_text())
        assert written == merged[part]


def ask(*parts: ImagePart | VideoPart) -> Conversation:
    return Conversation(messages=(Message(role="user", parts=(*parts, TextPart("What is it?"))),))


def assert_equal(one: Example, other: Example) -> None:
    assert one.spans == other.spans
    assert one.grids == other.grids
    assert torch.equal(one.patches, other.patches)


def test_a_run_takes_its_processor_along(tmp_path: Path) -> None:
    run = load_run(save_run(tmp_path / "run", "++processor.image.mean=[0.4,0.5,0.6]"))
    assert command(f"run={run.folder.path}", f"output={tmp_path / 'out'}") == 0
    exported = load_processor(tmp_path / "out")
    assert exported.tokenizer.to_str() == run.processor.tokenizer.to_str()

    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "owl.png")
    picture = ask(ImagePart(ImageFile(tmp_path / "owl.png")))
    assert run.processor(picture).grids == ((1, 4, 4),)
    assert_equal(run.processor(picture), exported(picture))
    clip = ask(VideoPart(VideoFile(asset_path("video", "big_buck_bunny.mp4"))))
    assert run.processor(clip).grids[0][0] == 5  # ten frames at most
    assert_equal(run.processor(clip), exported(clip))

    theirs = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    for name in ("fps", "min_frames", "max_frames", "patch_size", "merge_size"):
        assert getattr(theirs.video_processor, name) == getattr(run.processor.video, name)
    area = theirs.video_processor.size
    video = run.processor.video
    assert (area.shortest_edge, area.longest_edge) == (video.min_pixels, video.max_pixels)
    inputs = theirs.image_processor([pixels], return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 4]]
    expected = run.processor(picture).patches
    assert torch.allclose(inputs["pixel_values"], expected, atol=1e-6)


def test_transformers_reads_a_run_after_conversion(tmp_path: Path) -> None:
    run = load_run(save_run(tmp_path / "run"))
    assert command(f"run={run.folder.path}", f"output={tmp_path / 'out'}") == 0
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    special = run.model.special_tokens

    made = make_inputs(CASES["mix"], InputSpec.of(run.model), seed=0)
    with torch.no_grad():
        difference = theirs(**made).logits - run.model.logits(batch_from_hf(made, special))
    real = made["attention_mask"].bool()
    assert difference[real].abs().max() <= 1e-5  # measured: 2.1e-6

    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "owl.png")
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    inputs = processor(text=[prompt], images=[pixels], return_tensors="pt")
    example = run.processor(ask(ImagePart(ImageFile(tmp_path / "owl.png"))), for_generation=True)
    batch = collate([[example]], pad_id=special.pad_id, merge_size=2)
    with torch.no_grad():
        difference = theirs(**inputs).logits - run.model.logits(batch)
    assert difference.abs().max() <= 1e-5  # measured: 1.8e-6


@pytest.mark.parametrize(
    ("temporal", "name"),
    [
        ("t_rope", "TRoPE"),
        ("index", "IndexTime"),
        ("text_hms", "TextTimestamp of HMS"),
        ("text_mixed", "TextTimestamp of Seconds, HMS"),
    ],
)
def test_a_layout_of_videos_that_no_reader_knows_is_refused(
    temporal: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save_run(tmp_path / "run", f"temporal={temporal}")
    assert command(f"run={run}", f"output={tmp_path / 'out'}") == 2
    assert f"videos are laid out by {name}, but the published" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    save_pretrained(load_run(run).model, tmp_path / "weights")  # the way out that the message names


@pytest.mark.parametrize("template", ["instruct", "thinking"])
@pytest.mark.parametrize("labels", ["false", "true"])
def test_a_run_takes_its_chat_template_along(template: str, labels: str, tmp_path: Path) -> None:
    run = load_run(
        save_run(tmp_path / "run", f"template={template}", f"template.add_vision_id={labels}")
    )
    save_pretrained(run.model, tmp_path / "out", processor=run.processor)
    assert load_processor(tmp_path / "out").template == run.processor.template
