"""The composed model: what must not change, whatever the parts."""

from dataclasses import replace

import pytest
import torch

from tests.conftest import spread
from tests.samples import (
    PAD_ID,
    image_example,
    text_example,
    two_images_example,
    video_example,
)
from vlmkit.build import build_model
from vlmkit.data.collate import collate
from vlmkit.errors import ConfigError
from vlmkit.fusion.deepstack import DeepStack

EXAMPLES = [text_example(0), image_example(1), two_images_example(2), video_example(3)]


def single(example):
    return collate([[example]], pad_id=PAD_ID, merge_size=2)


@pytest.fixture(params=["dense", "moe"])
def model(request, tiny_model, tiny_moe):
    return {"dense": tiny_model, "moe": tiny_moe}[request.param]


def test_packed_equals_separate(model):
    """Measured worst error 7e-7 on logits up to 2.6."""
    batch = collate([EXAMPLES[:2], EXAMPLES[2:]], pad_id=PAD_ID, merge_size=2)
    with torch.no_grad():
        packed = model.logits(batch)
        for sample, example in enumerate(EXAMPLES):
            alone = model.logits(single(example))[0]
            assert torch.allclose(packed[batch.sample_ids == sample], alone, atol=1e-5)


def test_no_gradient_between_samples(model):
    """d loss(sample 3) / d input(any other sample) is exactly zero, through text and vision."""
    batch = collate([EXAMPLES], pad_id=PAD_ID, merge_size=2)
    patches = batch.vision.patches.clone().requires_grad_()
    batch = replace(batch, vision=replace(batch.vision, patches=patches))
    caught = []
    handle = model.decoder.embedding.register_forward_hook(
        lambda _, __, out: caught.append(out.detach().requires_grad_()) or caught[-1]
    )
    logits = model.logits(batch)
    handle.remove()
    own = batch.sample_ids == 3
    gradient, on_patches = torch.autograd.grad(logits[own].square().sum(), (caught[0], patches))
    assert not gradient[~own].any()
    assert gradient[own].any()
    own_patches = 2 * 16
    assert not on_patches[:-own_patches].any()
    assert on_patches[-own_patches:].any()


def test_padding_changes_nothing(model):
    rows = [[EXAMPLES[1]], [EXAMPLES[3]]]
    tight = collate(rows, pad_id=PAD_ID, merge_size=2)
    wide = collate(rows, pad_id=PAD_ID, merge_size=2, row_tokens=64)
    with torch.no_grad():
        a, b = model.logits(tight), model.logits(wide)
    for sample in range(2):
        # measured 0
        assert torch.allclose(
            a[tight.sample_ids == sample], b[wide.sample_ids == sample], atol=1e-5
        )


def test_text_only_steps_touch_every_parameter(model):
    model.zero_grad()
    model(single(EXAMPLES[0])).hidden.sum().backward()
    for name, parameter in model.named_parameters():
        if not name.startswith("decoder.head"):
            assert parameter.grad is not None, name
    vision = [
        p.grad for n, p in model.named_parameters() if n.startswith(("vision", "merger", "fusion"))
    ]
    assert not any(gradient.any() for gradient in vision)
    model.zero_grad()


def test_every_parameter_receives_a_finite_gradient(model, tiny_batch):
    model.zero_grad()
    model.logits(tiny_batch).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    model.zero_grad()


def test_text_ignores_the_vision_path(tiny_model):
    batch = single(EXAMPLES[0])
    with torch.no_grad():
        before = tiny_model.logits(batch)
        saved = tiny_model.vision.patch_embed.weight.clone()
        tiny_model.vision.patch_embed.weight.mul_(3)
        after = tiny_model.logits(batch)
        tiny_model.vision.patch_embed.weight.copy_(saved)
    assert torch.equal(before, after)


def test_placeholders_and_features_must_agree(tiny_batch):
    with pytest.raises(ValueError, match=r"holds 19 visual placeholders, .*give 20 features"):
        replace(tiny_batch, visual_index=tiny_batch.visual_index[:-1])
    with pytest.raises(ValueError, match="give 0 features"):
        replace(tiny_batch, vision=None)


def test_features_beyond_the_placeholders_are_never_cut_silently(tiny_model):
    class Raw(DeepStack):
        def project(self, levels):
            return levels  # forgets to merge: four rows for each visual token

    fusion = tiny_model.fusion
    try:
        tiny_model.fusion = Raw([1], 32, 64)
        with pytest.raises(ValueError, match="6 visual placeholders, the fusion gives 24 features"):
            tiny_model(single(EXAMPLES[1]))
    finally:
        tiny_model.fusion = fusion


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["fusion.merge_size=1"], "fusion.merge_size and merger.merge_size.*1 and 2"),
        (["model.merger.hidden_dim=32"], "merger.hidden_dim and decoder.hidden_dim.*32 and 64"),
        (["model.merger.vision_dim=16"], "merger.vision_dim and vision.dim.*16 and 32"),
        (["size.head_dim=32"], "head_dim 32 has 16"),
        (["size.num_kv_heads=3"], "num_heads 4 does not divide by num_kv_heads 3"),
    ],
)
def test_parts_that_do_not_fit_are_refused_with_both_values(overrides, words):
    with pytest.raises(ConfigError, match=words):
        build_model("model=qwen3vl_tiny", *overrides, device="meta")


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ("2b", 2_127_532_032),
        ("4b", 4_437_815_808),
        ("8b", 8_767_123_696),
        ("32b", 33_357_390_064),
        ("30b_a3b", 31_070_754_032),
        ("235b_a22b", 235_670_022_896),
    ],
)
def test_published_sizes_have_the_published_parameter_counts(size, parameters):
    model = build_model(f"model=qwen3vl_{size}", device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize(
    "overrides",
    [
        ["fusion=none"],
        ["position=chunked"],
        ["rope_scaling=yarn"],
        ["vision=siglip2_mini", "fusion.tapped_blocks=[1,3]"],
        ["vision=timm_vit", "vision.model_name=test_vit", "size.vision_dim=64", "fusion=none"],
    ],
)
def test_swapped_parts_still_pack(overrides):
    torch.manual_seed(0)
    model = spread(build_model("model=qwen3vl_tiny", *overrides))
    batch = collate([EXAMPLES], pad_id=PAD_ID, merge_size=2)
    with torch.no_grad():
        packed = model.logits(batch)
        alone = model.logits(single(EXAMPLES[3]))[0]
    # measured 0
    assert torch.allclose(packed[batch.sample_ids == 3], alone, atol=1e-5)
