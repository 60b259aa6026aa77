"""The dictionary of names: every size, both directions, against what transformers builds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vlmkit.build import build_model, compose_config
from vlmkit.checkpoint.key_map import (
    PAIRS,
    Shape,
    TensorEntry,
    published_entries,
    stored_transposed,
    translate,
)
from vlmkit.checkpoint.published import interleaved_section, overrides_from_published
from vlmkit.checkpoint.published_config import published_config
from vlmkit.errors import CheckpointError
from vlmkit.fusion.none import NoFusion
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.position.axes import interleaved

# Published totals of parameters and of tensors in a checkpoint.
SIZES = {
    "qwen3vl_2b": (2_127_532_032, 625),
    "qwen3vl_4b": (4_437_815_808, 713),
    "qwen3vl_8b": (8_767_123_696, 750),
    "qwen3vl_32b": (33_357_390_064, 1058),
    "qwen3vl_30b_a3b": (31_070_754_032, 882),
    "qwen3vl_235b_a22b": (235_670_022_896, 1388),
}


def meta_model(*overrides: str) -> Qwen3VL:
    model = build_model(*overrides, device="meta")
    assert isinstance(model, Qwen3VL)
    return model


def reference_on_meta(model: Qwen3VL) -> nn.Module:
    """What transformers builds from the config that we would write."""
    transformers = pytest.importorskip("transformers")
    settings = published_config(model)
    config = transformers.AutoConfig.for_model(**settings)
    with torch.device("meta"):
        return transformers.AutoModelForImageTextToText.from_config(config)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_has_the_published_tensors(size: str) -> None:
    model = meta_model(f"model={size}")
    total, count = SIZES[size]
    entries = published_entries(model)
    assert len(entries) == count
    assert sum(parameter.numel() for parameter in model.parameters()) == total

    expected = {
        name: tuple(parameter.shape)
        for name, parameter in reference_on_meta(model).named_parameters()
    }
    assert entries.keys() == expected.keys()
    for name, entry in entries.items():
        # transformers 5 keeps experts in memory with the last two axes exchanged
        assert (entry.transposed_shape or entry.published_shape) == expected[name], name


@pytest.mark.parametrize("size", [*SIZES, "qwen3vl_tiny", "qwen3vl_tiny_moe"])
def test_names_and_configs_survive_the_round_trip(size: str) -> None:
    model = meta_model(f"model={size}")
    for name, _ in model.named_parameters():
        published, pair = translate(name, to_published=True)  # type: ignore[misc]
        assert translate(published, to_published=False) == (name, pair)

    config = published_config(model)
    overrides = overrides_from_published(config)
    again = meta_model(*overrides)
    assert published_config(again) == config
    assert {n: p.shape for n, p in again.named_parameters()} == {
        n: p.shape for n, p in model.named_parameters()
    }
    assert again.special_tokens == model.special_tokens
    composed = compose_config(*overrides)
    assert composed.size.vocab_ranks == compose_config(f"model={size}").size.vocab_ranks


def test_no_name_is_in_the_dictionary_twice() -> None:
    assert len({pair.published for pair in PAIRS}) == len(PAIRS)
    assert len({pair.ours for pair in PAIRS}) == len(PAIRS)
    for pair in PAIRS:
        assert translate(pair.ours.format(i=7, p="bias"), to_published=True) is not None
    assert translate("model.visual.blocks.x.norm1.weight", to_published=False) is None


def test_values_survive_the_round_trip() -> None:
    model = build_model("model=qwen3vl_tiny_moe")
    assert isinstance(model, Qwen3VL)
    for entry in published_entries(model).values():
        parameter = model.get_parameter(entry.ours)
        published = entry.to_published(parameter)
        assert published.shape == entry.published_shape
        assert torch.equal(entry.to_ours(published), parameter)
        if entry.transposed_shape is not None:
            swapped = published.transpose(-1, -2)
            assert swapped.shape == entry.transposed_shape
            assert torch.equal(entry.to_ours(swapped, transposed=True), parameter)


def experts(hidden: int, inner: int) -> tuple[list[TensorEntry], dict[str, Shape]]:
    """Entries of one layer's experts and their shapes in the published layout."""
    shapes: dict[str, Shape] = {"gate_up": (4, hidden, 2 * inner), "down": (4, inner, hidden)}
    entries = [
        TensorEntry(
            published=name,
            ours=name,
            published_shape=shape,
            our_shape=shape,
            maybe_transposed=True,
        )
        for name, shape in shapes.items()
    ]
    return entries, shapes


@pytest.mark.parametrize(("hidden", "inner"), [(64, 24), (64, 32), (64, 64)])
def test_expert_layout_is_told_by_shape_even_where_one_tensor_is_square(
    hidden: int, inner: int
) -> None:
    entries, shapes = experts(hidden, inner)
    swapped = {name: (shape[0], shape[2], shape[1]) for name, shape in shapes.items()}
    assert not stored_transposed(entries, shapes)
    assert stored_transposed(entries, swapped)


def test_mixed_expert_layouts_are_refused() -> None:
    entries, shapes = experts(64, 24)
    shapes["down"] = (4, 64, 24)
    with pytest.raises(CheckpointError, match=r"gate_up is .* published .* down in that of"):
        stored_transposed(entries, shapes)


def test_a_part_without_published_names_is_named() -> None:
    model = meta_model("model=qwen3vl_tiny")
    model.fusion.add_module("gate", nn.Linear(2, 2, device="meta"))
    with pytest.raises(CheckpointError, match=r"no name for fusion\.gate\.weight.*DeepStack"):
        published_entries(model)
    assert not any("gate." in e.ours for e in published_entries(model, ["fusion"]).values())


@pytest.mark.parametrize(
    ("stated", "head_dim", "read"),
    [
        ([24, 20, 20], 128, [24, 20, 20]),
        ([4, 2, 2], 16, [4, 2, 2]),
        ([24, 20, 20], 16, [3, 3, 2]),  # T H W T H W T H
        ([2, 3, 3], 16, [3, 3, 2]),
        ([9, 1, 1], 16, [6, 1, 1]),
    ],
)
def test_sections_are_read_as_the_released_code_reads_them(
    stated: list[int], head_dim: int, read: list[int]
) -> None:
    assert interleaved_section(stated, head_dim) == read
    axes = [0] * (head_dim // 2)
    for axis in (1, 2):  # the released code: slice(axis, 3 * section[axis], 3)
        axes[axis : 3 * stated[axis] : 3] = [axis] * len(axes[axis : 3 * stated[axis] : 3])
    assert interleaved(read) == axes


class Gated(NoFusion):
    """A fusion that the published layout does not know."""


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["fusion.receiving_layers=[1,0]"], r"receive the tapped blocks in order.*\[1, 0\]"),
        (["vision=timm_vit", "size.deepstack_blocks=[1,2]"], "SigLIP2ViT as vision.*TimmViT"),
    ],
)
def test_what_the_published_layout_cannot_say_is_refused(overrides: list[str], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        published_config(meta_model("model=qwen3vl_tiny", *overrides))


def test_a_custom_class_is_refused_and_its_name_given() -> None:
    model = build_model("model=qwen3vl_tiny", device="meta", fusion=Gated())
    with pytest.raises(CheckpointError, match="this model has Gated"):
        published_config(model)  # type: ignore[arg-type]


def test_what_differs_only_in_numbers_is_written() -> None:
    model = meta_model("model=qwen3vl_tiny", "fusion=none", "position=chunked")
    config = published_config(model)
    assert config["vision_config"]["deepstack_visual_indexes"] == []
    assert config["text_config"]["rope_scaling"]["mrope_interleaved"] is False
    again = meta_model(*overrides_from_published(config))
    assert again.position.axes == model.position.axes

    yarn = meta_model("model=qwen3vl_tiny", "rope_scaling=yarn", "rope_scaling.factor=2.0")
    written = published_config(yarn)["text_config"]
    assert written["rope_scaling"]["factor"] == 2.0
    assert written["max_position_embeddings"] == 2 * 262_144
    again = meta_model(*overrides_from_published(published_config(yarn)))
    assert torch.equal(again.position.inv_freq(), yarn.position.inv_freq())
