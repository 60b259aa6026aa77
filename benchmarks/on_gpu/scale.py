"""How large everything is: as on a GPU, or as a CPU gets through in a minute."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training step.

    Attributes:
        model: overrides that choose it.
        row_tokens: capacity of a pack.
        packs: of a step, one at a time through the model.
        lora: whether adapters train instead of all weights.
        compiled: whether compile=blocks is tried, too.
        least_mfu: goal, share of the data sheet's peak.
        least_tflops: goal, 1e12 FLOP/s by definition.
    """

    model: tuple[str, ...]
    row_tokens: int
    packs: int
    lora: bool = False
    compiled: bool = True
    least_mfu: float | None = None
    least_tflops: float | None = None


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Attention of one kind.

    Attributes:
        heads: of queries.
        kv_heads: of keys and values.
        dim: of a head.
        lengths: of the segments.
        causal: whether a token sees only those before it.
    """

    heads: int
    kv_heads: int
    dim: int
    lengths: tuple[int, ...]
    causal: bool

    @property
    def flops(self) -> float:
        """Forward and backward by definition: causal attention at half."""
        pairs = sum(n * n for n in self.lengths) / (2 if self.causal else 1)
        return 3 * 4 * pairs * self.heads * self.dim


@dataclass(frozen=True, kw_only=True)
class Scale:
    """All sizes.

    Attributes:
        is_toy: whether figures mean nothing.
        cells: drawings on a side of a canvas, the fewest and the most.
        turns: questions about a canvas at most.
        rounds: that a step is timed.
        repeats: of a kernel within a round.
        backend: of torch.compile.
        matmul: side of the matrices that show what the device can do.
        copy_bytes: that show its bandwidth.
        steps: training cases.
        small: overrides of models that a CPU reference is computed for.
        small_tokens: of their row.
        experts: overrides of the model whose layers make the group of mixtures.
        segments: of the group: number and length.
        heads: attention shapes.
        loss_rows: scored tokens, width and vocabulary of the loss.
    """

    is_toy: bool
    cells: tuple[int, int]
    turns: int
    rounds: int
    repeats: int
    backend: str
    matmul: int
    copy_bytes: int
    steps: dict[str, Training]
    small: dict[str, tuple[str, ...]]
    small_tokens: int
    experts: tuple[str, ...]
    segments: tuple[int, int]
    heads: dict[str, Heads]
    loss_rows: tuple[int, int, int]


NARROW = (  # published shapes with the widths cut
    "size.hidden_dim=512",
    "size.num_layers=6",
    "size.num_heads=8",
    "size.num_kv_heads=2",
    "size.head_dim=64",
    "size.mrope_section=[12,10,10]",
    "size.vision_dim=576",
    "size.deepstack_blocks=[1,3,4]",
    "vision.depth=5",
    "vision.mlp_dim=1152",
    "vision.num_heads=8",  # head_dim 72, as the released encoder's
)

FULL = Scale(
    is_toy=False,
    cells=(4, 20),
    turns=12,
    rounds=5,
    repeats=10,
    backend="inductor",
    matmul=8192,
    copy_bytes=2**32,
    steps={
        "train_2b": Training(
            model=("model=qwen3vl_2b",), row_tokens=8192, packs=4, least_mfu=0.5
        ),
        "train_4b": Training(
            model=("model=qwen3vl_4b",), row_tokens=8192, packs=4, least_mfu=0.5
        ),
        "lora_8b": Training(
            model=("model=qwen3vl_8b",), row_tokens=8192, packs=2, lora=True, least_tflops=450
        ),
        "train_2b_32k": Training(model=("model=qwen3vl_2b",), row_tokens=32768, packs=1),
    },
    small={
        "dense": ("model=qwen3vl_tiny", *NARROW, "size.intermediate_dim=1536"),
        "mixture": (
            "model=qwen3vl_tiny_moe", *NARROW, "size.num_experts=32", "size.num_active_experts=4",
            "size.expert_dim=256",
        ),
    },
    small_tokens=2048,
    experts=(
        "model=qwen3vl_30b_a3b", "size.num_layers=8", "size.vocab_ranks=998", "size.vocab_size=1024",
    ),
    segments=(8, 2048),
    heads={
        "decoder of 8B, one pack": Heads(
            heads=32, kv_heads=8, dim=128, causal=True,
            lengths=(2400, 1800, 1300, 900, 700, 500, 350, 242),
        ),
        "decoder of 8B, 32K": Heads(
            heads=32, kv_heads=8, dim=128, causal=True, lengths=(32768,),
        ),
        "encoder, pictures": Heads(
            heads=16, kv_heads=16, dim=72, causal=False,
            lengths=(4800, 3600, 2600, 1800, 1400, 1000, 700, 484),
        ),
    },
    loss_rows=(4096, 4096, 151_936),
)  # fmt: skip

_TINY = ("model=qwen3vl_tiny",)
TOY = Scale(
    is_toy=True,
    cells=(2, 4),
    turns=2,
    rounds=2,
    repeats=1,
    backend="eager",
    matmul=256,
    copy_bytes=2**20,
    steps={
        "train_2b": Training(model=_TINY, row_tokens=512, packs=2),
        "train_4b": Training(model=_TINY, row_tokens=384, packs=2, compiled=False),
        "lora_8b": Training(model=_TINY, row_tokens=384, packs=1, lora=True),
        "train_2b_32k": Training(model=_TINY, row_tokens=768, packs=1, compiled=False),
    },
    small={"dense": _TINY, "mixture": ("model=qwen3vl_tiny_moe",)},
    small_tokens=256,
    experts=("model=qwen3vl_tiny_moe",),
    segments=(2, 64),
    heads={
        "decoder, one pack": Heads(heads=4, kv_heads=2, dim=16, lengths=(40, 24, 9), causal=True),
        "encoder, pictures": Heads(heads=4, kv_heads=4, dim=16, lengths=(64, 36), causal=False),
    },
    loss_rows=(96, 64, 1024),
)
