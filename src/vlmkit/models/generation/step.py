"""One token more for every row: the decoder's work with what is fixed prepared once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlmkit.batch import VisualTokens
from vlmkit.language.decoder import DecoderLayer
from vlmkit.language.kv_cache import KVCache, LayerCache
from vlmkit.language.layers import FeedForward, RMSNorm, SwiGLU
from vlmkit.models.qwen3vl import Qwen3VL

Project = Callable[[Tensor], Tensor]

WORTH_A_LAYOUT = 16
"""Steps after which a new layout of the weights has paid for itself; making it costs a few steps."""

FEW_ROWS = range(2, 17)
"""Numbers of rows for which a tall matrix, the head's, is faster from the left, as measured on a CPU."""


class DecodeStep:
    """Runs the decoder for one token per row; the same numbers as `Qwen3VL.forward` gives.

    A step of a small model is mostly the cost of starting operations. So the projections of queries,
    keys and values are one product, their norms and rotations one operation each, and no batch is
    built. On the CPU the weights are laid out by input feature, which a product with few rows reads at
    about twice the speed. All of these are copies: prepare a new step after a change of weights.
    """

    def __init__(self, model: Qwen3VL, num_tokens: int = 0) -> None:
        """Join the projections of every layer.

        Args:
            model: in evaluation mode, its weights whole on this device.
            num_tokens: how many steps are to come at most; few are not worth a new layout, and none is
                made without this.
        """
        self._model = model
        decoder = model.decoder
        relaid = num_tokens >= WORTH_A_LAYOUT and decoder.embedding.weight.device.type == "cpu"
        self._layers = [_Layer(layer, relaid) for layer in decoder.layers.values()]  # type: ignore[arg-type]
        self._relaid = relaid
        self._head = _product([decoder.head_weight], relaid)
        self._norm = _prepared_norm(decoder.norm)
        weight = decoder.embedding.weight
        nothing = torch.empty(0, decoder.hidden_dim, dtype=weight.dtype, device=weight.device)
        self._no_visual = VisualTokens(
            index=torch.empty(0, dtype=torch.int64, device=weight.device),
            embeddings=nothing,
            levels=tuple(nothing for _ in model.fusion.tapped_blocks),
        )

    def __call__(self, tokens: Tensor, positions: Tensor, cache: KVCache) -> Tensor:
        """Feed a token to every row.

        Args:
            tokens: (rows,) int64.
            positions: (rows,) int64, the same on all three axes.
            cache: past keys and values; grows by one token a row.

        Returns:
            (rows, dim) hidden states after the final norm.

        Raises:
            ValueError: the cache is full; names its capacity.
        """
        cache.check_room(1)
        model = self._model
        hidden = model.decoder.embedding(tokens)  # (rows, dim)
        cos, sin = model.position(positions.expand(3, 1, -1), hidden.dtype)  # (1, rows, head_dim)
        half = sin.shape[-1] // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        cos, sin = cos[0, :, None], sin[0, :, None]  # (rows, 1, head_dim)
        fed = model.fusion.receiving_layers
        for index, (layer, part) in enumerate(zip(self._layers, cache.layers, strict=True)):
            hidden = layer(hidden, cos, sin, part)
            if index in fed:
                hidden = model.fusion(hidden[:, None], index, self._no_visual)[:, 0]
        cache.advance(1)
        return self._norm(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """(rows, dim), normalised -> (rows, vocab)."""
        if self._relaid and len(hidden) in FEW_ROWS:
            return (self._model.decoder.head_weight @ hidden.t()).t().contiguous()
        return self._head(hidden)


class _Layer:
    """A decoder layer for one token per row."""

    def __init__(self, layer: DecoderLayer, relaid: bool) -> None:
        attention = layer.attention
        self.heads = (attention.num_heads, attention.num_kv_heads, attention.num_kv_heads)
        self.head_dim = attention.head_dim
        self.attention_norm = _prepared_norm(layer.attention_norm)
        self.feed_forward_norm = _prepared_norm(layer.feed_forward_norm)
        self.feed_forward = _feed_forward(layer.feed_forward, relaid)
        self.qkv = _joined([attention.q_proj, attention.k_proj, attention.v_proj], relaid)
        self.o_proj = _joined([attention.o_proj], relaid)
        gains = (attention.q_norm.weight, attention.k_norm.weight)
        counts = (attention.num_heads, attention.num_kv_heads)
        self.gain = torch.cat([g.expand(n, -1) for g, n in zip(gains, counts, strict=True)])
        self.eps = attention.q_norm.eps

    def __call__(self, hidden: Tensor, cos: Tensor, sin: Tensor, cache: LayerCache) -> Tensor:
        """(rows, dim) -> (rows, dim)."""
        num_heads, num_kv_heads, _ = self.heads
        qkv = self.qkv(self.attention_norm(hidden)).unflatten(-1, (sum(self.heads), self.head_dim))
        turned, value = qkv.split([num_heads + num_kv_heads, num_kv_heads], dim=1)
        turned = _normed(turned, self.eps) * self.gain
        turned = turned * cos + turned.roll(self.head_dim // 2, dims=-1) * sin
        query, key = turned.to(value.dtype).split([num_heads, num_kv_heads], dim=1)
        out = cache.step(query, key, value)
        hidden = hidden + self.o_proj(out.flatten(1))
        return hidden + self.feed_forward(self.feed_forward_norm(hidden))


def _feed_forward(module: FeedForward, relaid: bool) -> Project:
    if not relaid or type(module) is not SwiGLU:
        return lambda x: module(x[:, None], None)[0][:, 0]
    gate, up = _joined([module.gate_proj], True), _joined([module.up_proj], True)
    down = _joined([module.down_proj], True)
    return lambda x: down(F.silu(gate(x)) * up(x))


def _joined(linears: list[nn.Linear], relaid: bool) -> Project:
    """One product for several; adapted or quantised layers run one by one."""
    if all(type(linear) is nn.Linear for linear in linears):
        if len(linears) == 1 and not relaid:
            return linears[0]
        return _product([linear.weight for linear in linears], relaid)
    return lambda x: torch.cat([linear(x) for linear in linears], dim=-1)


def _product(weights: list[Tensor], relaid: bool) -> Project:
    """x -> x times the transposed weights, side by side."""
    weight = torch.cat(weights) if len(weights) > 1 else weights[0]
    if not relaid:
        return partial(F.linear, weight=weight)
    by_input = weight.t().contiguous()
    return lambda x: x @ by_input


def _prepared_norm(norm: RMSNorm) -> Project:
    """The same norm as one operation where that rounds alike, which is in float32."""
    if norm.weight.dtype != torch.float32:
        return norm
    return lambda x: F.rms_norm(x.float(), (x.shape[-1],), norm.weight, norm.eps)


def _normed(x: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm without its gain, in float32, cast back."""
    return F.rms_norm(x.float(), (x.shape[-1],), None, eps).to(x.dtype)
