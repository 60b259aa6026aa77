"""SigLIP-2 ViT at native resolution, as Qwen3-VL uses it (So400m and Large differ in numbers only)."""

from __future__ import annotations

from collections.abc import Sequence

from einops import rearrange
from torch import Tensor, nn

from vlmkit.attention.base import Attention
from vlmkit.batch import Segments, VisionInputs
from vlmkit.position.mrope import Rotary, apply_rotary
from vlmkit.vision.base import VisionEncoder, VisionFeatures
from vlmkit.vision.embed import PositionTable, Rotary2D
from vlmkit.vision.init import VisionWeights

LAYER_NORM_EPS = 1e-6  # fixed in the released model; torch's default is 1e-5


class VisionAttention(nn.Module):
    """Full attention among the patches of one temporal patch, with 2D rotary."""

    def __init__(self, dim: int, num_heads: int, attention: Attention) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention = attention
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rotary: Rotary, segments: Segments) -> Tensor:
        """(patches, dim) -> (patches, dim)."""
        query, key, value = rearrange(
            self.qkv(x),
            "patches (three heads dim) -> three patches heads dim",
            three=3,
            heads=self.num_heads,
        )
        # rotated in float32, as the encoder was trained
        query, key = (apply_rotary(part.float(), rotary).to(value.dtype) for part in (query, key))
        out = self.attention(query, key, value, segments=segments, causal=False)
        return self.proj(out.flatten(1))


class VisionMLP(nn.Module):
    """Two linear layers with tanh-approximated GELU (the mergers use the exact one)."""

    def __init__(self, dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, mlp_dim)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(mlp_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(patches, dim) -> (patches, dim)."""
        return self.fc2(self.act(self.fc1(x)))


class VisionBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, mlp_dim: int, num_heads: int, attention: Attention) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attention = VisionAttention(dim, num_heads, attention)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = VisionMLP(dim, mlp_dim)

    def forward(self, x: Tensor, rotary: Rotary, segments: Segments) -> Tensor:
        """(patches, dim) -> (patches, dim)."""
        x = x + self.attention(self.norm1(x), rotary, segments)
        return x + self.mlp(self.norm2(x))


class SigLIP2ViT(VisionEncoder):
    """Linear patch embedding, resampled position table, 2D rotary, global attention within a frame.

    Qwen3-VL report, section on the vision encoder. No class token, no final norm, no pooling.
    """

    def __init__(
        self,
        *,
        depth: int,
        dim: int,
        mlp_dim: int,
        num_heads: int,
        attention: Attention,
        patch_size: int = 16,
        temporal_patch_size: int = 2,
        in_channels: int = 3,
        position_side: int = 48,
        init: str | None = None,
    ) -> None:
        """Build the encoder.

        Args:
            depth: number of blocks.
            dim: width.
            mlp_dim: hidden width of the MLP.
            num_heads: heads; `dim / num_heads` must divide by 4.
            attention: back end.
            patch_size: pixels on a side of a patch.
            temporal_patch_size: frames in a patch.
            in_channels: colour channels.
            position_side: rows and columns of the learned position table.
            init: where starting weights come from: `timm:<model name>`, or a local safetensors file
                in timm's SigLIP-2 layout; None starts from random values.

        Raises:
            ValueError: the width does not split into heads.
        """
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"vision dim {dim} does not divide into {num_heads} heads")
        self.dim, self.depth = dim, depth
        self.patch_size, self.temporal_patch_size = patch_size, temporal_patch_size
        self.patch_dim = in_channels * temporal_patch_size * patch_size**2
        self.init = VisionWeights(init) if init else None
        # kernel = stride, so the published Conv3d is a linear map; Conv3d itself is slow on some builds
        self.patch_embed = nn.Linear(self.patch_dim, dim)
        self.position_table = PositionTable(position_side, dim)
        self.rotary = Rotary2D(dim // num_heads)
        self.blocks = nn.ModuleList(
            VisionBlock(dim, mlp_dim, num_heads, attention) for _ in range(depth)
        )

    def reset_parameters(self) -> None:
        """Random values, then the weights that `init` names."""
        super().reset_parameters()
        self.position_table.reset_parameters()
        if self.init is not None:
            self.init.load_into(self)

    def forward(self, vision: VisionInputs, tapped_blocks: Sequence[int] = ()) -> VisionFeatures:
        """See `VisionEncoder.forward`."""
        x = self.patch_embed(vision.patches.to(self.patch_embed.weight.dtype))  # (patches, dim)
        x = x + self.position_table(vision.coords)
        rotary = self.rotary(vision.coords)
        outputs: dict[int, Tensor] = {}
        for i, block in enumerate(self.blocks):
            x = block(x, rotary, vision.segments)
            if i in tapped_blocks:
                outputs[i] = x
        return VisionFeatures(last=x, levels=tuple(outputs[i] for i in tapped_blocks))
