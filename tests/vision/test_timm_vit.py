"""`TimmViT` is timm's own forward pass, told in patches; and it leaves meta with the right values."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor, nn

from vlmkit.batch import VisionInputs
from vlmkit.initialization import materialize
from vlmkit.vision.timm_vit import TimmViT

PATCH, FRAMES, DEPTH = 8, 2, 3

MODELS = {
    "vit_tiny_patch16_224": {"img_size": 32},  # a class token
    "vit_small_patch16_dinov3": {},  # registers, rotary buffers
    "vit_so400m_patch16_siglip_256": {"img_size": 32},  # attention pooling
    "vit_small_patch16_rope_mixed_224": {"img_size": 32},  # learned rotary frequencies
}


def build(name: str = "vit_tiny_patch16_224", **kwargs: Any) -> TimmViT:
    sizes = {"embed_dim": 32, "depth": DEPTH, "num_heads": 2, "patch_size": PATCH, **MODELS[name]}
    return TimmViT(name, PATCH, FRAMES, **{"model_kwargs": sizes, **kwargs}).eval()


def filled(name: str = "vit_tiny_patch16_224", **kwargs: Any) -> TimmViT:
    torch.manual_seed(0)
    encoder = build(name, **kwargs)
    encoder.reset_parameters()
    return encoder


def vision_inputs(*videos: Tensor, merge_size: int = 2) -> VisionInputs:
    """Videos, each (frames, channels, height, width), as patches in merge-window order."""
    patches = [
        rearrange(
            video,
            "(time frame) channels (rows row height) (columns column width) -> "
            "(time rows columns row column) (channels frame height width)",
            frame=FRAMES,
            row=merge_size,
            column=merge_size,
            height=PATCH,
            width=PATCH,
        )
        for video in videos
    ]
    grids = [
        (len(video) // FRAMES, video.shape[2] // PATCH, video.shape[3] // PATCH) for video in videos
    ]
    return VisionInputs.from_grids(torch.cat(patches), grids, merge_size)


def random_video(rows: int, columns: int, frames: int = FRAMES) -> Tensor:
    return torch.randn(frames, 3, rows * PATCH, columns * PATCH)


def still(rows: int, columns: int) -> Tensor:
    return random_video(rows, columns, frames=1).expand(FRAMES, -1, -1, -1)


def window_order(features: Tensor) -> Tensor:
    """(dim, rows, columns) -> (patches, dim) in windows of 2 x 2."""
    return rearrange(
        features,
        "dim (rows row) (columns column) -> (rows columns row column) dim",
        row=2,
        column=2,
    )


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_features_are_those_of_timm(name: str) -> None:
    encoder, picture = filled(name), still(4, 6)
    features = encoder(vision_inputs(picture), tapped_blocks=(1, 0))
    theirs = encoder.vit.forward_intermediates(picture[:1], intermediates_only=True)
    first, second, last = (window_order(level[0]) for level in theirs)
    # measured 0: the mean of two equal frames is exact
    assert torch.equal(features.last, last)
    assert len(features.levels) == 2
    assert torch.equal(features.levels[0], second)
    assert torch.equal(features.levels[1], first)


@torch.no_grad()
def test_pictures_do_not_see_each_other() -> None:
    encoder = filled()
    videos = [still(4, 6), random_video(2, 4, frames=3 * FRAMES), still(6, 4), still(4, 6)]
    together = encoder(vision_inputs(*videos), tapped_blocks=(0, 2))
    alone = [encoder(vision_inputs(video), tapped_blocks=(0, 2)) for video in videos]
    for i, level in enumerate((*together.levels, together.last)):
        expected = torch.cat([(*part.levels, part.last)[i] for part in alone])
        torch.testing.assert_close(level, expected, atol=1e-5, rtol=0)  # measured 0
    assert torch.equal(together.levels[1], together.last)


@torch.no_grad()
def test_a_temporal_patch_is_the_mean_of_its_frames() -> None:
    encoder, video = filled(), random_video(4, 4, frames=2 * FRAMES)
    averages = video.unflatten(0, (2, FRAMES)).mean(1, keepdim=True).expand(-1, FRAMES, -1, -1, -1)
    moving = encoder(vision_inputs(video)).last
    frozen = encoder(vision_inputs(averages[0], averages[1])).last
    torch.testing.assert_close(moving, frozen, atol=1e-5, rtol=0)  # measured 0


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    encoder = filled(name)
    vision = vision_inputs(still(4, 4), still(2, 4))
    vision.patches.requires_grad_()
    features = encoder(vision, tapped_blocks=(0,))
    (features.last.square().sum() + features.levels[0].square().sum()).backward()
    assert vision.patches.grad.isfinite().all()
    assert vision.patches.grad.abs().sum(dim=1).all()
    assert [key for key, value in encoder.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_meta_and_host_give_the_same_model(name: str) -> None:
    host = filled(name)
    with torch.device("meta"):
        encoder = build(name)
    assert all(parameter.is_meta for parameter in encoder.parameters())
    materialize(encoder, "cpu")
    for parameter in encoder.parameters():
        nn.init.constant_(parameter, torch.nan)
    torch.manual_seed(0)
    build(name)  # draws the numbers that `filled` draws before it resets
    encoder.reset_parameters()
    vision = vision_inputs(still(4, 6))
    assert torch.equal(encoder(vision).last, host(vision).last)


def test_sizes_are_those_of_the_model() -> None:
    encoder = build()
    assert (encoder.dim, encoder.depth, encoder.patch_dim) == (32, DEPTH, 3 * FRAMES * PATCH**2)


@torch.no_grad()
def test_parameters_decide_the_dtype() -> None:
    encoder = filled("vit_small_patch16_dinov3").to(torch.bfloat16)
    assert encoder(vision_inputs(still(2, 2))).last.dtype == torch.bfloat16


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_pretrained_weights_survive_reset_parameters(
    tmp_path: Path, device: str, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(7)
    sizes = {"embed_dim": 32, "depth": DEPTH, "num_heads": 2, "patch_size": PATCH, "img_size": 32}
    source = timm.create_model("vit_tiny_patch16_224", **sizes)  # with its head and final norm
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    local = {"file": str(tmp_path / "model.safetensors"), "mean": (0.1, 0.2, 0.3)}
    with torch.device(device):
        encoder = build(pretrained=True, model_kwargs={**sizes, "pretrained_cfg_overlay": local})
    materialize(encoder, "cpu")
    with caplog.at_level(logging.INFO, logger="vlmkit.vision.timm_vit"):
        encoder.reset_parameters()
    assert "mean (0.1, 0.2, 0.3)" in caplog.text
    expected = source.state_dict()
    for key, tensor in encoder.vit.state_dict().items():
        assert torch.equal(tensor, expected[key]), key


def test_unreachable_weights_name_the_remedy(tmp_path: Path) -> None:
    local = {"file": str(tmp_path / "absent.safetensors")}
    encoder = build(
        pretrained=True,
        model_kwargs={"patch_size": PATCH, "depth": 1, "pretrained_cfg_overlay": local},
    )
    with pytest.raises(ValueError, match=r"'vit_tiny_patch16_224'.*pretrained_cfg_overlay\.file"):
        encoder.reset_parameters()


def test_another_patch_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"patches of \(14, 14\) pixels, patch_size is 16"):
        TimmViT("vit_small_patch14_dinov2", 16, model_kwargs={"depth": 1})


def test_another_merge_size_is_refused() -> None:
    encoder = build(merge_size=1)
    with pytest.raises(ValueError, match=r"merge_size 2, the encoder was built for 1"):
        encoder(vision_inputs(still(2, 2)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18", "'resnet18' does not accept .*dynamic_img_size"),
        ("swin_tiny_patch4_window7_224", r"not a plain ViT: it has no \['blocks'\]"),
    ],
)
def test_other_models_are_refused(name: str, message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        TimmViT(name, 4)
