"""timm's SigLIP-2 weights in `SigLIP2ViT`: the same numbers come out, or a clear error and no change."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from einops import rearrange, repeat
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from vlmkit.attention.sdpa import SDPAAttention
from vlmkit.batch import VisionInputs
from vlmkit.vision.embed import PositionTable, Rotary2D
from vlmkit.vision.init import VisionWeights, timm_to_encoder
from vlmkit.vision.siglip2 import SigLIP2ViT

DEPTH, DIM, MLP_DIM, NUM_HEADS, SIDE = 2, 32, 64, 2, 4

Weights = dict[str, Tensor]


def tiny_timm(name: str = "vit_so400m_patch16_siglip_256", **kwargs: object) -> nn.Module:
    """A two-block SigLIP of timm's, with all parameters random so that none can be forgotten."""
    torch.manual_seed(0)
    model = timm.create_model(
        name,
        **{"embed_dim": DIM, "depth": DEPTH, "num_heads": NUM_HEADS, "mlp_ratio": 2.0, **kwargs},
    )
    for key, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=0.05 if "embed" in key else 0.2)
    return model.eval()


def random_picture() -> Tensor:
    """(channels, height, width) in -1 .. 1."""
    return torch.rand(3, 16 * SIDE, 16 * SIDE) * 2 - 1


def tiny_conv_timm(**kwargs: object) -> nn.Module:
    return tiny_timm(**{"img_size": 16 * SIDE, **kwargs})


def tiny_encoder(**kwargs: object) -> SigLIP2ViT:
    torch.manual_seed(1)
    sizes = {"depth": DEPTH, "dim": DIM, "mlp_dim": MLP_DIM, "num_heads": NUM_HEADS}
    encoder = SigLIP2ViT(**{**sizes, "position_side": SIDE, "attention": SDPAAttention(), **kwargs})
    encoder.reset_parameters()
    return encoder


def save(weights: Weights, folder: Path) -> str:
    path = folder / "model.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in weights.items()}, path)
    return str(path)


def still_picture(picture: Tensor, patch_size: int = 16) -> VisionInputs:
    """(channels, height, width) -> its patches in windows of 2 x 2, the frame given twice."""
    rows, columns = (size // patch_size for size in picture.shape[1:])
    patches = rearrange(
        repeat(picture, "channels height width -> frames channels height width", frames=2),
        "frames channels (rows row ph) (columns column pw) -> "
        "(rows columns row column) (channels frames ph pw)",
        row=2,
        column=2,
        ph=patch_size,
        pw=patch_size,
    )
    return VisionInputs.from_grids(patches, [(1, rows, columns)], merge_size=2)


def window_order(features: Tensor, rows: int) -> Tensor:
    """(rows * columns, dim), row after row -> the same in windows of 2 x 2."""
    return rearrange(
        features,
        "(rows row columns column) dim -> (rows columns row column) dim",
        rows=rows // 2,
        row=2,
        column=2,
    )


@pytest.fixture
def no_rotary(monkeypatch: pytest.MonkeyPatch) -> None:
    """SigLIP-2 has no rotary embedding: rotate by zero."""

    def zero_angles(self: Rotary2D, coords: Tensor) -> tuple[Tensor, Tensor]:
        angles = torch.zeros(len(coords), 4 * len(self.inv_freq()))
        return angles.cos(), angles.sin()

    monkeypatch.setattr(Rotary2D, "forward", zero_angles)


def test_a_still_picture_is_embedded_as_by_timm(tmp_path: Path) -> None:
    model, encoder = tiny_conv_timm(), tiny_encoder()
    VisionWeights(save(model.state_dict(), tmp_path)).load_into(encoder)
    picture = random_picture()
    ours = encoder.patch_embed(still_picture(picture).patches)
    theirs = window_order(model.patch_embed(picture[None])[0], SIDE)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)  # measured 3.1e-6


@torch.no_grad()
def test_features_equal_timm_on_the_grid_of_the_table(tmp_path: Path, no_rotary: None) -> None:
    model, encoder = tiny_conv_timm(), tiny_encoder()
    VisionWeights(save(model.state_dict(), tmp_path)).load_into(encoder)
    picture = random_picture()
    ours = encoder(still_picture(picture), tapped_blocks=(0,))
    theirs = model.forward_intermediates(
        picture[None], indices=[0, 1], output_fmt="NLC", intermediates_only=True
    )
    # measured 3.3e-6; exact instead of tanh GELU would give 2.9e-4, exchanged norms 1.6
    for mine, reference in zip((*ours.levels, ours.last), theirs, strict=True):
        torch.testing.assert_close(mine, window_order(reference[0], SIDE), atol=1e-5, rtol=0)


@torch.no_grad()
def test_naflexvit_gives_the_same_features(tmp_path: Path, no_rotary: None) -> None:
    model = tiny_timm("naflexvit_so400m_patch16_siglip", pos_embed_grid_size=(SIDE, SIDE))
    encoder = tiny_encoder()
    VisionWeights(save(model.state_dict(), tmp_path)).load_into(encoder)
    picture = random_picture()
    ours = encoder(still_picture(picture), tapped_blocks=(0,))
    theirs = model.forward_intermediates(
        picture[None], indices=[0, 1], output_fmt="NLC", intermediates_only=True
    )
    # measured 1.5e-6
    for mine, reference in zip((*ours.levels, ours.last), theirs, strict=True):
        torch.testing.assert_close(mine, window_order(reference[0], SIDE), atol=1e-5, rtol=0)


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_frames_of_a_patch_share_the_kernel(frames: int) -> None:
    weights, encoder = tiny_conv_timm().state_dict(), tiny_encoder(temporal_patch_size=frames)
    kernel = timm_to_encoder(weights, encoder)["patch_embed.weight"]
    per_frame = kernel.unflatten(1, (3, frames, 16, 16))
    expected = weights["patch_embed.proj.weight"] / frames
    for frame in per_frame.unbind(2):
        assert torch.equal(frame, expected)


def test_a_kernel_of_another_size_sees_a_resized_patch_alike() -> None:
    model, encoder = tiny_conv_timm(img_size=56, patch_size=14), tiny_encoder()
    values = timm_to_encoder(model.state_dict(), encoder)
    small = torch.rand(5, 3, 14, 14) * 2 - 1
    large = F.interpolate(small, size=(16, 16), mode="bicubic", antialias=True)
    patches = repeat(large, "n c ph pw -> n (c frames ph pw)", frames=2)
    ours = F.linear(patches, values["patch_embed.weight"], values["patch_embed.bias"])
    theirs = model.patch_embed.proj(small).flatten(1)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)  # measured 2.9e-6


def test_a_table_of_the_same_side_is_copied() -> None:
    weights = tiny_conv_timm().state_dict()
    values = timm_to_encoder(weights, tiny_encoder())
    assert torch.equal(values["position_table.weight"], weights["pos_embed"][0])


def test_a_resampled_table_is_read_back_on_its_own_grid() -> None:
    side = 16
    ramp = torch.linspace(0, torch.pi, side)
    waves = torch.cos(torch.arange(8)[:, None] * ramp)  # (8, side), the first one constant
    table = torch.einsum("ar,bc->rcab", waves[:4], waves).reshape(1, side**2, DIM)
    weights = tiny_conv_timm().state_dict() | {"pos_embed": table}
    values = timm_to_encoder(weights, tiny_encoder(position_side=48))
    resampled = PositionTable(48, DIM)
    resampled.load_state_dict({"weight": values["position_table.weight"]})
    own_grid = VisionInputs.from_grids(torch.zeros(side**2, 1), [(1, side, side)], merge_size=1)
    error = (resampled(own_grid.coords) - table[0]).abs().max()
    assert error < 0.04  # measured 0.028; align_corners=False would give 0.36


def test_reset_parameters_loads_in_the_dtype_of_the_encoder(tmp_path: Path) -> None:
    path = save(tiny_conv_timm().state_dict(), tmp_path)
    encoder = tiny_encoder(init=path)
    expected = timm_to_encoder(tiny_conv_timm().state_dict(), encoder)
    half = tiny_encoder(init=path).to(torch.bfloat16)
    half.reset_parameters()
    for name, parameter in encoder.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    for name, parameter in half.named_parameters():
        assert torch.equal(parameter, expected[name].bfloat16()), name


def test_what_is_dropped_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="vlmkit.vision.init"):
        timm_to_encoder(tiny_conv_timm().state_dict(), tiny_encoder())
    assert "attn_pool (13 tensors)" in caplog.text
    assert "norm (2 tensors)" in caplog.text


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("vit_so400m_patch16_siglip_256.v2_webli", (27, 1152, 4304, 16)),
        ("vit_so400m_patch16_siglip_512.v2_webli", (27, 1152, 4304, 16)),
        ("naflexvit_so400m_patch16_siglip.v2_webli", (27, 1152, 4304, 16)),
        ("vit_large_patch16_siglip_256.v2_webli", (24, 1024, 4096, 16)),
    ],
)
def test_published_sizes_map_completely(name: str, sizes: tuple[int, int, int, int]) -> None:
    depth, dim, mlp_dim, num_heads = sizes
    with torch.device("meta"):
        model = timm.create_model(name)
        encoder = SigLIP2ViT(
            depth=depth, dim=dim, mlp_dim=mlp_dim, num_heads=num_heads, attention=SDPAAttention()
        )
    values = timm_to_encoder(model.state_dict(), encoder)  # checks every shape
    assert values.keys() == dict(encoder.named_parameters()).keys()


def without(key: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: tensor for name, tensor in weights.items() if name != key}


def with_tensor(key: str, *shape: int) -> Callable[[Weights], Weights]:
    return lambda weights: weights | {key: torch.zeros(shape)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("blocks.1.mlp.fc1.bias"), r"get no value: blocks\.1\.mlp\.fc1\.bias$"),
        (without("pos_embed"), r"get no value: position_table\.weight$"),
        (
            with_tensor("blocks.0.ls1.gamma", DIM),
            r"no place in the encoder: blocks\.0\.ls1\.gamma$",
        ),
        (with_tensor("cls_token", 1, 1, DIM), r"no place in the encoder: cls_token$"),
        (with_tensor("embeds.pos_embed", 1, 4, 4, DIM), r"no place .*: (embeds\.)?pos_embed$"),
        (
            with_tensor("blocks.1.attn.qkv.weight", 96, 16),
            r"blocks\.1\.attention\.qkv\.weight is \(96, 16\), the encoder has \(96, 32\)",
        ),
        (
            with_tensor("patch_embed.proj.weight", DIM, 1, 16, 16),
            r"patch_embed\.weight is \(32, 512\), the encoder has \(32, 1536\)",
        ),
        (with_tensor("patch_embed.proj.weight", DIM, 700), r"patch kernel \(32, 700\)"),
        (with_tensor("pos_embed", 1, 17, DIM), r"position table \(1, 17, 32\)"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(
    tmp_path: Path, change: Callable[[Weights], Weights], message: str
) -> None:
    path, encoder = save(change(tiny_conv_timm().state_dict()), tmp_path), tiny_encoder()
    before = {name: parameter.clone() for name, parameter in encoder.named_parameters()}
    with pytest.raises(ValueError, match=message) as error:
        VisionWeights(path).load_into(encoder)
    assert path in str(error.value)
    for name, parameter in encoder.named_parameters():
        assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (1, r"no place in the encoder: blocks\.1\.norm1\.weight"),
        (3, r"get no value: blocks\.2\.norm1\.weight"),
    ],
)
def test_another_depth_is_refused(depth: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timm_to_encoder(tiny_conv_timm().state_dict(), tiny_encoder(depth=depth))


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.bin", "vit_so400m"])
def test_only_safetensors_files_are_taken(name: str) -> None:
    with pytest.raises(ValueError, match=rf"\.safetensors file, got '{name}'"):
        VisionWeights(name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "absent.safetensors"
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors"):
        VisionWeights(str(path)).load_into(tiny_encoder())


def test_a_renamed_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pickle.safetensors"
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"pickle\.safetensors: not readable as safetensors"):
        VisionWeights(str(path)).load_into(tiny_encoder())


def test_timm_names_are_fetched_with_pretrained_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model, encoder = tiny_conv_timm(), tiny_encoder()
    asked = []

    def create_model(name: str, pretrained: bool) -> nn.Module:
        asked.append((name, pretrained))
        return model

    monkeypatch.setattr(timm, "create_model", create_model)
    VisionWeights("timm:vit_tiny").load_into(encoder)
    assert asked == [("vit_tiny", True)]
    assert torch.equal(encoder.blocks[1].mlp.fc2.weight, model.blocks[1].mlp.fc2.weight)


def test_without_a_network_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(name: str, pretrained: bool) -> nn.Module:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(ValueError, match=r"(?s)'vit_tiny'.*no route to host.*\.safetensors"):
        VisionWeights("timm:vit_tiny").load_into(tiny_encoder())


def test_an_unknown_timm_name_is_named() -> None:
    with pytest.raises(ValueError, match=r"Unknown model \(vit_of_nobody\)"):
        VisionWeights("timm:vit_of_nobody").load_into(tiny_encoder())
