"""One optimiser step does not depend on how it is cut."""

import json

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from tests.samples import (
    PAD_ID,
    image_example,
    text_example,
    two_images_example,
    video_example,
)
from vlmkit.attention.sdpa import SDPAAttention
from vlmkit.batch import StepBatch
from vlmkit.build import build, build_model, compose_config
from vlmkit.data.collate import collate
from vlmkit.errors import ConfigError
from vlmkit.training.jsonl_logger import JSONLLogger
from vlmkit.training.precision import BFloat16Precision, check_precision
from vlmkit.training.vlm_module import VLMModule

EXAMPLES = [
    text_example(0, answer=9),
    image_example(1),
    two_images_example(2),
    video_example(3),
    text_example(4),
    image_example(5, answer=7),
    text_example(6, answer=2),
    image_example(7),
]


PLAIN_SGD = [  # the weights after one step are the gradient
    "optim.optimizer._target_=torch.optim.SGD",
    "~optim.optimizer.betas",
    "~optim.optimizer.fused",
    "optim.lr=1.0",
    "optim.clip_norm=1e9",
    "optim.weight_decay=0",
]


def step(loss: str, cut: list[list[int]], *overrides: str, rows: int = 1) -> VLMModule:
    """Train one step on the same eight samples, cut into micro-batches."""
    torch.manual_seed(0)
    config = compose_config(
        "model=qwen3vl_tiny", f"loss={loss}", "run_dir=none", *PLAIN_SGD, *overrides
    )
    model = build_model(config=config)
    batches = [
        collate(
            [[EXAMPLES[i] for i in part[r::rows]] for r in range(rows)], pad_id=PAD_ID, merge_size=2
        )
        for part in cut
    ]
    module = build(config.module, model=model)
    trainer = L.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        precision=config.trainer.precision,
        plugins=build(config.trainer.plugins),
    )
    if isinstance(trainer.precision_plugin, BFloat16Precision):
        model.to(torch.bfloat16)
    whole = StepBatch(step=0, micro_batches=tuple(batches), tokens={}, samples={})
    trainer.fit(module, DataLoader([whole], batch_size=None, collate_fn=lambda x: x))
    return module


@pytest.mark.parametrize(
    ("loss", "model"),
    [
        ("per_token", "qwen3vl_tiny"),
        ("sqrt_token", "qwen3vl_tiny"),
        ("per_sample", "qwen3vl_tiny"),
        ("sqrt_token", "qwen3vl_tiny_moe"),
    ],
)
def test_micro_batches_and_packing_do_not_change_the_step(loss, model):
    sized = f"model={model}"
    whole = step(loss, [[0, 1, 2, 3, 4, 5, 6, 7]], sized)
    cuts = {
        "two of four": step(loss, [[0, 1, 2, 3], [4, 5, 6, 7]], sized),
        "eight of one": step(loss, [[i] for i in range(8)], sized),
        "four rows": step(loss, [[0, 1, 2, 3, 4, 5, 6, 7]], sized, rows=4),
    }
    for name, other in cuts.items():
        for (key, a), b in zip(
            whole.model.named_parameters(), other.model.parameters(), strict=True
        ):
            worst = float((a - b).detach().abs().max())
            assert worst < 1e-6, (name, key, worst)  # measured 1.3e-7 on gradients up to 0.24
        grads = [m.trainer.callback_metrics["train/grad_norm"] for m in (whole, other)]
        # measured 3e-7 relative
        assert float(grads[0]) == pytest.approx(float(grads[1]), rel=1e-5), name
        losses = [m.trainer.callback_metrics["train/loss"] for m in (whole, other)]
        assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-6), name


@pytest.mark.parametrize("precision", ["bf16_mixed", "bf16_true"])
@pytest.mark.parametrize("model", ["qwen3vl_tiny", "qwen3vl_tiny_moe"])
def test_bfloat16_trains(precision, model):
    full = step("per_token", [[0, 1, 2, 3], [4, 5]], f"model={model}")
    half = step("per_token", [[0, 1, 2, 3], [4, 5]], f"model={model}", f"precision={precision}")
    dtype = torch.bfloat16 if precision == "bf16_true" else torch.float32
    assert {parameter.dtype for parameter in half.model.parameters()} == {dtype}
    losses = [float(m.trainer.callback_metrics["train/loss"]) for m in (full, half)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)  # measured 3.2e-3


def test_kernels_get_one_dtype_under_autocast():
    """QK-norm's float32 gains would raise queries and keys, and flash kernels would refuse."""
    seen = []

    def watch(query, key, value, **rest):
        seen.append({query.dtype, key.dtype, value.dtype})
        return SDPAAttention()(query, key, value, **rest)

    model = build_model("model=qwen3vl_tiny")
    for module in model.modules():
        if hasattr(module, "attention") and not isinstance(module.attention, torch.nn.Module):
            module.attention = watch
    batch = collate([EXAMPLES[:2]], pad_id=PAD_ID, merge_size=2)
    with torch.autocast("cpu", torch.bfloat16):
        model(batch)
    assert seen
    assert all(dtypes == {torch.bfloat16} for dtypes in seen)


def test_half_precision_that_the_step_cannot_do_is_refused():
    for precision, words in (
        ("bf16-true", "precision=bf16_true"),
        ("16-true", "precision=bf16_true"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_precision(L.Trainer(precision=precision, accelerator="cpu", logger=False))


def test_moe_adds_the_balancing_loss():
    dense = step("per_token", [[0, 1, 2, 3]])
    moe = step("per_token", [[0, 1, 2, 3]], "model=qwen3vl_tiny_moe")
    assert "train/balancing" not in dense.trainer.callback_metrics
    balance = float(moe.trainer.callback_metrics["train/balancing"])
    assert 2.0 <= balance < 2.5  # two of eight experts; nearly balanced at the start


def test_jsonl_logger_appends_lines(tmp_path):
    logger = JSONLLogger(tmp_path / "run" / "metrics.jsonl")
    logger.log_metrics({"train/loss": 1.5, "epoch": 0}, step=3)
    logger.log_metrics({"train/loss": 1.25}, step=4)
    rows = [json.loads(line) for line in logger.path.read_text().splitlines()]
    assert [(row["step"], row["train/loss"]) for row in rows] == [(3, 1.5), (4, 1.25)]
    assert all(set(row) == {"step", "time_s", "train/loss"} for row in rows)
