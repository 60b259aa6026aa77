import pytest
import torch
from torch.nn import functional as F

from vlmkit.attention.sdpa import SDPAAttention
from vlmkit.batch import VisionInputs, patch_coordinates
from vlmkit.vision.embed import PositionTable, Rotary2D
from vlmkit.vision.siglip2 import SigLIP2ViT


@pytest.fixture(scope="module")
def encoder() -> SigLIP2ViT:
    torch.manual_seed(0)
    vit = SigLIP2ViT(
        depth=3, dim=32, mlp_dim=48, num_heads=2, position_side=4, attention=SDPAAttention()
    )
    vit.reset_parameters()
    return vit.eval()


def test_patches_come_in_merge_windows():
    coords = patch_coordinates([(1, 4, 6)], merge_size=2)
    written = [row * 10 + column for row, column, *_ in coords.tolist()]
    assert written == [
        *(0, 1, 10, 11), *(2, 3, 12, 13), *(4, 5, 14, 15),
        *(20, 21, 30, 31), *(22, 23, 32, 33), *(24, 25, 34, 35),
    ]  # fmt: skip


def test_attention_segments_are_temporal_patches():
    vision = VisionInputs.from_grids(torch.zeros(24 + 48, 8), [(1, 4, 6), (3, 4, 4)], merge_size=2)
    assert vision.segments.cu_seqlens.tolist() == [0, 24, 40, 56, 72]
    assert vision.num_visual_tokens == 18


def test_grids_must_match_patches():
    with pytest.raises(ValueError, match="hold 24 patches, the tensor has 23"):
        VisionInputs.from_grids(torch.zeros(23, 8), [(1, 4, 6)], merge_size=2)
    with pytest.raises(ValueError, match="does not divide by merge_size 2"):
        VisionInputs.from_grids(torch.zeros(20, 8), [(1, 4, 5)], merge_size=2)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (2, 6), (48, 48), (30, 62), (1, 7)])
def test_position_table_equals_bilinear_interpolation(height, width):
    table = PositionTable(48, 8)
    table.reset_parameters()
    coords = patch_coordinates([(1, height, width)], merge_size=1)
    image = table.weight.double().view(1, 48, 48, 8).permute(0, 3, 1, 2)
    resized = F.interpolate(image, (height, width), mode="bilinear", align_corners=True)
    if height == 1:  # one row sits at the top of the table
        resized = F.interpolate(image[:, :, :1], (1, width), mode="bilinear", align_corners=True)
    expected = resized[0].permute(1, 2, 0).flatten(0, 1).float()
    # measured 1.2e-7 on values up to 1.5
    assert torch.allclose(table(coords), expected, atol=2e-6)


def test_position_table_on_its_own_grid_is_the_table():
    table = PositionTable(48, 8)
    table.reset_parameters()
    assert torch.equal(table(patch_coordinates([(1, 48, 48)], 1)), table.weight)


def test_position_table_golden_corner():
    table = PositionTable(48, 2304)
    with torch.no_grad():
        table.weight.copy_(torch.eye(2304))
    coords = patch_coordinates([(1, 4, 4)], merge_size=1)
    row = table(coords)[5]  # patch (1, 1)
    assert row.nonzero().flatten().tolist() == [735, 736, 783, 784]
    assert row[row > 0].tolist() == pytest.approx([1 / 9, 2 / 9, 2 / 9, 4 / 9])


def test_rotary_golden_values():
    for head_dim, first, last in (
        (72, [1.0, 0.599484, 0.359381, 0.215443], 1.668101e-4),
        (64, [1.0, 0.562341, 0.316228, 0.177828], 1.778279e-4),
    ):
        frequency = Rotary2D(head_dim).inv_freq()
        assert frequency[:4].tolist() == pytest.approx(first, abs=1e-6)
        assert float(frequency[-1]) == pytest.approx(last, rel=1e-6)
    cos, _ = Rotary2D(72)(torch.tensor([[5, 7, 8, 8]]))
    assert cos[0, :3].tolist() == pytest.approx([0.283662, -0.989625, -0.224189], abs=1e-6)
    assert cos[0, 18:21].tolist() == pytest.approx([0.753902, -0.493404, -0.810423], abs=1e-6)


def test_video_of_k_patches_is_k_pictures(encoder):
    patches = torch.randn(3 * 16, encoder.patch_dim)
    video = encoder(VisionInputs.from_grids(patches, [(3, 4, 4)], 2), (0, 2))
    pictures = encoder(VisionInputs.from_grids(patches, [(1, 4, 4)] * 3, 2), (0, 2))
    assert torch.equal(video.last, pictures.last)
    assert torch.equal(video.levels[0], pictures.levels[0])


def test_pictures_do_not_see_each_other(encoder):
    grids = [(1, 4, 6), (1, 2, 2), (1, 4, 6)]
    patches = torch.randn(24 + 4 + 24, encoder.patch_dim, requires_grad=True)
    together = encoder(VisionInputs.from_grids(patches, grids, 2))
    alone = [
        encoder(VisionInputs.from_grids(part, [grid], 2)).last
        for part, grid in zip(patches.split([24, 4, 24]), grids, strict=True)
    ]
    # measured 0
    assert torch.allclose(together.last, torch.cat(alone), atol=5e-6)
    (gradient,) = torch.autograd.grad(together.last[24:28].sum(), patches)
    assert gradient[24:28].abs().sum() > 0
    assert not gradient[:24].any()
    assert not gradient[28:].any()


def test_taps_are_block_outputs_in_the_order_asked(encoder):
    vision = VisionInputs.from_grids(torch.randn(16, encoder.patch_dim), [(1, 4, 4)], 2)
    caught = []
    handles = [
        block.register_forward_hook(lambda _, __, out: caught.append(out))
        for block in encoder.blocks
    ]
    features = encoder(vision, (2, 0))
    for handle in handles:
        handle.remove()
    assert torch.equal(features.levels[0], caught[2])
    assert torch.equal(features.levels[1], caught[0])
    assert torch.equal(features.last, caught[-1])


def test_width_must_split_into_heads():
    with pytest.raises(ValueError, match="30 does not divide into 4 heads"):
        SigLIP2ViT(depth=1, dim=30, mlp_dim=8, num_heads=4, attention=SDPAAttention())
