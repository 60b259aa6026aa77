"""A run with checks is, bit for bit, the run without; a failure stops it and says why."""

import json
import random

import lightning as L
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torchmetrics import MeanMetric

from tests.conftest import spread
from tests.data.toys import Numbered
from tests.training.self_checks.test_packing import Leaky
from vlmkit.build import CONF_DIR, build, build_model, compose_config
from vlmkit.data.order.mixture import Mixture, Weighted
from vlmkit.data.order.samples import Samples
from vlmkit.data.order.work import Limits
from vlmkit.errors import UserError
from vlmkit.training.jsonl_logger import JSONLLogger
from vlmkit.training.self_checks.base import CheckResult, SelfCheckError, Status
from vlmkit.training.self_checks.callback import SelfChecks, warn
from vlmkit.training.self_checks.samples import ShortestFirst

CHECKS = OmegaConf.load(CONF_DIR / "self_checks" / "default.yaml")


class Steps(L.LightningModule):
    """A few steps of training, with something random in each."""

    def __init__(self, model, loss, nudge=None):
        super().__init__()
        self.automatic_optimization = False
        self.model, self.loss, self.nudge = model, loss, nudge
        self.metric = MeanMetric()
        self.seen, self.modes = [], []

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        numerator = 0
        for micro in batch.micro_batches:
            hidden = self.model(micro).hidden
            hidden = hidden + 1e-3 * torch.randn_like(hidden)
            out = self.loss(hidden, self.model.decoder.head_weight, micro)
            self.metric.update(out.token_nll)
            numerator = numerator + out.numerator
        self.manual_backward(numerator)
        optimizer.step()
        optimizer.zero_grad()
        self.modes.append(all(m.training for m in self.model.modules()))
        drawn = random.random(), str(np.random.get_state())  # noqa: NPY002
        self.seen.append((batch.step, numerator.item(), *drawn))
        if self.nudge is not None and self.global_step == 2:
            with torch.no_grad():
                self.nudge(self.model)

    def configure_optimizers(self):
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=1e-3)


def train(folder, *overrides, checks=True, steps=4, callback=None, prepare=None, **module):
    L.seed_everything(3, verbose=False)
    config = compose_config(
        "model=qwen3vl_tiny", f"run_dir={folder}", "planner=samples", "planner.samples_per_step=2",
        f"trainer.max_steps={steps}", "data.num_workers=0", *overrides,
    )  # fmt: skip
    data = build(config.data)
    data.validation = {}
    model = spread(build_model(config=config))
    model.vision.requires_grad_(False)
    if prepare:
        prepare(model)
    stepping = Steps(model, build(config.loss), **module)
    if callback is None:
        callback = build(CHECKS)
        callback.every_n_steps = 2
    trainer = L.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", logger=JSONLLogger(folder / "m.jsonl"),
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, callbacks=[callback] if checks else [],
    )  # fmt: skip
    trainer.fit(stepping, data)
    return stepping, data


@pytest.mark.parametrize("model", ["qwen3vl_tiny", "qwen3vl_tiny_moe"])
def test_a_run_with_checks_is_the_run_without(model, tmp_path, capsys):
    with_checks, data = train(tmp_path / "a", f"model={model}")
    shown = capsys.readouterr().out
    plain, same = train(tmp_path / "b", f"model={model}", checks=False)
    assert with_checks.seen == plain.seen
    assert all(with_checks.modes)
    for (name, a), b in zip(with_checks.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert a.grad is None
    assert torch.equal(with_checks.metric.compute(), plain.metric.compute())
    assert data.skips.state_dict() == same.skips.state_dict()
    assert torch.get_default_dtype() == torch.float32

    for name in CHECKS.checks:
        assert name in shown
    assert "skipped" in shown if model == "qwen3vl_tiny" else "groups in float32" in shown
    assert "seconds" in shown  # the quickstart's film is among the samples
    assert "every 2 steps" in shown
    rows = [json.loads(line) for line in (tmp_path / "a" / "m.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "checks/isolation" in row]
    assert steps == [0, 1, 2, 4]
    assert all(row["checks/isolation"] == 0 for row in rows if "checks/isolation" in row)
    assert any("checks/share" in row for row in rows)


def test_a_leak_stops_the_run_before_the_first_step(tmp_path):
    def leak(model):
        for layer in model.decoder.layers.values():
            layer.attention.attention = Leaky()

    with pytest.raises(SelfCheckError) as caught:
        train(tmp_path, prepare=leak)
    message = str(caught.value)
    assert isinstance(caught.value, UserError)
    assert "self-check isolation failed at step 0: measured" in message
    assert "tolerance 0" in message
    assert "try attention=sdpa" in message
    assert "packed_equals_alone" in message
    assert "attention_kernels" in message


def test_a_frozen_weight_that_moves_stops_the_run_at_the_next_check(tmp_path):
    def nudge(model):
        model.vision.patch_embed.bias[0] += 1e-7

    with pytest.raises(
        SelfCheckError, match=r"frozen_unchanged failed at step 2: .*vision\.patch_embed\.bias has"
    ):
        train(tmp_path, nudge=nudge)


def test_a_run_may_be_warned_only(tmp_path, caplog):
    class Broken:
        meaning = "this test broke it"

        def run(self, context):
            return CheckResult(status=Status.FAILED, measured=2.0, tolerance=1.0, detail="as told")

    callback = SelfChecks({"broken": Broken()}, every_n_steps=10, on_failure=warn)
    module, _ = train(tmp_path, callback=callback, steps=1)
    assert "self-check broken failed at step 0: measured 2, tolerance 1 (as told)" in caplog.text
    assert "this test broke it" in caplog.text
    assert len(module.seen) == 1


def samples_of(source):
    processor = build(compose_config("model=qwen3vl_tiny", "run_dir=unused").processor)
    mixture = Mixture({"numbers": Weighted(source=source, shuffle=False)})
    return Samples(mixture, processor, Limits(8192, None))


def test_the_shortest_are_taken_within_the_budget_and_bad_ones_left_out():
    samples = samples_of(Numbered(30, broken=frozenset({1, 2})))
    chosen = ShortestFirst(count=3, look_at=12)(samples)
    numbers = [example.meta["number"] for example in chosen]
    assert len(numbers) == 3
    assert not {1, 2} & set(numbers)
    assert any(example.grids for example in chosen)
    assert [e.meta["number"] for e in ShortestFirst(count=3, look_at=12)(samples)] == numbers
    assert ShortestFirst(max_tokens=5)(samples) == ()
    with pytest.raises(ValueError, match="count is 5 and look_at 2"):
        ShortestFirst(count=5, look_at=2)
