"""Patches of a picture -> one vector: SigLIP's attention pooling ("MAP head"; Zhai et al. 2022)."""

from __future__ import annotations

import logging

import torch
from einops import rearrange
from torch import Tensor, nn

from vlmkit.attention.base import Attention
from vlmkit.batch import Segments
from vlmkit.errors import listed
from vlmkit.initialization import init_parameters_
from vlmkit.vision.init import VisionWeights
from vlmkit.vision.siglip2 import LAYER_NORM_EPS, VisionMLP

log = logging.getLogger(__name__)

TIMM_POOL, TIMM_NORM = "attn_pool.", "norm."


class AttentionPool(nn.Module):
    """A learned query attends to the normalised patches of a picture, then an MLP.

    Only for contrastive training: the encoder's final norm and this head are no part of Qwen3-VL.
    """

    def __init__(
        self,
        *,
        dim: int,
        mlp_dim: int,
        num_heads: int,
        attention: Attention,
        init: str | None = None,
    ) -> None:
        """Build the head.

        Args:
            dim: width of patches and of the result.
            mlp_dim: hidden width of the MLP.
            num_heads: heads; must divide `dim`.
            attention: back end.
            init: as the encoder's; weights without a pooling head leave it random, and the log says so.

        Raises:
            ValueError: the width does not split into heads.
        """
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"pooling dim {dim} does not divide into {num_heads} heads")
        self.dim, self.num_heads, self.attention = dim, num_heads, attention
        self.init = VisionWeights(init) if init else None
        self.patch_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.latent = nn.Parameter(torch.empty(1, 1, dim))
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = VisionMLP(dim, mlp_dim)

    def reset_parameters(self) -> None:
        """SigLIP's random values, then the weights that `init` names."""
        init_parameters_(self)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        nn.init.normal_(self.latent, std=self.dim**-0.5)
        if self.init is not None:
            self._load(self.init)

    def forward(self, patches: Tensor, pictures: Segments, queries: Segments) -> Tensor:
        """Pool each picture by itself.

        Args:
            patches: (patches, dim), output of the encoder's last block.
            pictures: over the patches; all frames of a video are one segment.
            queries: as many segments of length one.

        Returns:
            (pictures, dim).
        """
        query = self.q(self.latent[0]).expand(len(pictures.lengths), -1)
        key, value = rearrange(
            self.kv(self.patch_norm(patches)),
            "patches (two heads dim) -> two patches heads dim",
            two=2,
            heads=self.num_heads,
        )
        out = self.attention(
            query.unflatten(-1, (self.num_heads, -1)),
            key,
            value,
            segments=queries,
            key_segments=pictures,
            causal=False,
        )
        x = self.proj(out.flatten(1))
        return x + self.mlp(self.norm(x))

    def _load(self, weights: VisionWeights) -> None:
        """Take `attn_pool.*` and the final `norm.*` of timm's layout.

        Raises:
            ValueError: a pooling head is there, but does not fit; names each parameter.
        """
        tensors = weights.read()
        values = {
            key.removeprefix(TIMM_POOL): tensor
            for key, tensor in tensors.items()
            if key.startswith(TIMM_POOL)
        }
        if not values:
            log.warning("%s has no pooling head: it starts from random values", weights.source)
            return
        values |= {
            f"patch_{key}": tensor for key, tensor in tensors.items() if key.startswith(TIMM_NORM)
        }
        wanted = {name: tuple(parameter.shape) for name, parameter in self.named_parameters()}
        found = {name: tuple(tensor.shape) for name, tensor in values.items()}
        if wrong := sorted(
            name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)
        ):
            raise ValueError(
                f"vision weights {weights.source}: the pooling head differs in "
                + listed(f"{name} ({found.get(name)}, ours {wanted.get(name)})" for name in wrong)
            )
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(values[name])
        log.info("pooling head: %d tensors loaded from %s", len(values), weights.source)
