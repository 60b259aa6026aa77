"""SigLIP's text tower over packed captions: what pictures are matched with, and dropped afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from vlmkit.attention.base import Attention
from vlmkit.batch import Movable, Segments
from vlmkit.initialization import init_parameters_
from vlmkit.language.text_weights import TextWeights

LAYER_NORM_EPS = 1e-6  # SigLIP's; torch's default is 1e-5


@dataclass(frozen=True, kw_only=True)
class CaptionInputs(Movable):
    """Captions laid end to end."""

    ids: Tensor  # (caption_tokens,) int64
    positions: Tensor  # (caption_tokens,) int64, within the caption
    segments: Segments  # one per caption
    last: Tensor  # (captions,) int64, where each ends

    @classmethod
    def pack(cls, captions: Sequence[Sequence[int]]) -> CaptionInputs:
        """Lay captions of one token at least end to end."""
        lengths = [len(caption) for caption in captions]
        return cls(
            ids=torch.tensor([token for caption in captions for token in caption]),
            positions=torch.cat([torch.arange(length) for length in lengths]),
            segments=Segments.from_lengths(lengths),
            last=torch.tensor(list(accumulate(lengths))) - 1,
        )


class TextAttention(nn.Module):
    """Full attention among the tokens of a caption."""

    def __init__(self, dim: int, num_heads: int, attention: Attention) -> None:
        super().__init__()
        self.num_heads, self.attention = num_heads, attention
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, segments: Segments) -> Tensor:
        """(caption_tokens, dim) -> (caption_tokens, dim)."""
        query, key, value = (
            proj(x).unflatten(-1, (self.num_heads, -1))
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = self.attention(query, key, value, segments=segments, causal=False)
        return self.out_proj(out.flatten(1))


class TextBlock(nn.Module):
    """Pre-norm transformer block with tanh-approximated GELU."""

    def __init__(self, dim: int, mlp_dim: int, num_heads: int, attention: Attention) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attention = TextAttention(dim, num_heads, attention)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.fc1 = nn.Linear(dim, mlp_dim)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(mlp_dim, dim)

    def forward(self, x: Tensor, segments: Segments) -> Tensor:
        """(caption_tokens, dim) -> (caption_tokens, dim)."""
        x = x + self.attention(self.norm1(x), segments)
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))


class TextEncoder(nn.Module):
    """Learned positions, bidirectional blocks, and a linear head on the last token (Zhai et al. 2023)."""

    def __init__(
        self,
        *,
        vocab_size: int,
        dim: int,
        depth: int,
        mlp_dim: int,
        num_heads: int,
        embed_dim: int,
        attention: Attention,
        max_tokens: int = 64,
        init: str | None = None,
    ) -> None:
        """Build the tower.

        Args:
            vocab_size: rows of the embedding.
            dim: width.
            depth: number of blocks.
            mlp_dim: hidden width of the MLP.
            num_heads: heads; must divide `dim`.
            embed_dim: width of the result, that of the picture's.
            attention: back end.
            max_tokens: rows of the position table; no caption is longer.
            init: folder or .safetensors file in transformers' SigLIP layout to start from; None starts
                from random values.

        Raises:
            ValueError: the width does not split into heads.
        """
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"text dim {dim} does not divide into {num_heads} heads")
        self.vocab_size, self.max_tokens, self.embed_dim = vocab_size, max_tokens, embed_dim
        self.init = TextWeights(init) if init else None
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.position_embedding = nn.Embedding(max_tokens, dim)
        self.blocks = nn.ModuleList(
            TextBlock(dim, mlp_dim, num_heads, attention) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.head = nn.Linear(dim, embed_dim)

    def reset_parameters(self) -> None:
        """SigLIP's random values, then the weights that `init` names."""
        init_parameters_(self)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
        if self.init is not None:
            self.init.load_into(self)

    def forward(self, captions: CaptionInputs) -> Tensor:
        """(captions, embed_dim), not normalised."""
        x = self.token_embedding(captions.ids) + self.position_embedding(captions.positions)
        for block in self.blocks:
            x = block(x, captions.segments)
        return self.head(self.norm(x[captions.last]))
