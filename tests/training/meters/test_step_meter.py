"""Times go to the right section, add up, and ranks are combined right."""

from __future__ import annotations

import json
from unittest import mock

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from tests.samples import PAD_ID, image_example, text_example
from vlmkit.batch import StepBatch
from vlmkit.build import build_model
from vlmkit.data.collate import collate
from vlmkit.training.jsonl_logger import JSONLLogger
from vlmkit.training.meters.flops import flops_of
from vlmkit.training.meters.step_meter import StepMeter
from vlmkit.training.meters.timeline import CudaClock, Timeline
from vlmkit.training.sections import Sections

SLEEPS = {"data": 0.02, "forward": 0.01, "backward": 0.03, "collective": 0.005, "optimizer": 0.015}


NOW = [0.0]


def pass_time(seconds: float) -> None:
    NOW[0] += seconds


class StandingClock:
    """Goes on only where a test says so."""

    def mark(self) -> float:
        return NOW[0]

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def has_passed(self, mark: float) -> bool:
        return True


class SleepingData(torch.utils.data.IterableDataset):
    """Text for rank 0; for rank 1 the double of it, with two pictures."""

    def __init__(self, sleep_s: float, steps: int = 12) -> None:
        self.sleep_s, self.steps = sleep_s, steps

    def __iter__(self):
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        rows = [[[text_example(0, 10, 6)]], [[image_example(1, 2, 3), text_example(2, 6, 7)]]]
        micro = collate(rows[rank], pad_id=PAD_ID, merge_size=2)
        for step in range(self.steps):
            pass_time(self.sleep_s)
            yield StepBatch(step=step, micro_batches=(micro,) * (rank + 1), tokens={}, samples={})


class SleepingModule(L.LightningModule):
    def __init__(self, sleeps: dict[str, float], model=None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.sections, self.sleeps, self.model = Sections(), sleeps, model
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        for name in ("forward", "backward", "optimizer"):
            with self.sections(name):
                pass_time(self.sleeps[name])
                if name == "forward":
                    with self.sections("collective"):
                        pass_time(self.sleeps["collective"])
        pass_time(0.01 * self.global_rank)
        self.manual_backward(self.weight.sum())
        self.optimizers().step()

    def validation_step(self, batch, batch_idx):
        pass_time(0.2)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(folder, meter: StepMeter, sleeps=SLEEPS, model=None, **options) -> dict[str, float]:
    """The last line that was logged."""
    logger = JSONLLogger(folder / "metrics.jsonl")
    trainer = L.Trainer(
        **{
            "max_steps": 12, "max_epochs": -1, "accelerator": "cpu", "logger": logger, "log_every_n_steps": 4,
            "callbacks": [meter], "enable_checkpointing": False, "enable_progress_bar": False,
            "enable_model_summary": False, "use_distributed_sampler": False, "num_sanity_val_steps": 0,
            **options,
        }
    )  # fmt: skip
    loaders = [
        DataLoader(SleepingData(sleeps["data"], steps), batch_size=None, collate_fn=lambda x: x)
        for steps in (100, 1)
    ]
    with mock.patch("vlmkit.training.meters.step_meter.HostClock", StandingClock):
        trainer.fit(SleepingModule(sleeps, model), *loaders)
    return json.loads(logger.path.read_text().splitlines()[-1])


@pytest.fixture(scope="module")
def line(tmp_path_factory) -> dict[str, float]:
    torch.manual_seed(0)
    return fit(
        tmp_path_factory.mktemp("run"),
        StepMeter(warmup_steps=2, peak_tflops=1e-3),
        model=build_model("model=qwen3vl_tiny"),
        val_check_interval=6,
        check_val_every_n_epoch=None,
        limit_val_batches=1,
    )


def test_shares_add_up_and_sleeps_show_where_they_are(line):
    times = {key.removeprefix("time/"): v for key, v in line.items() if key.startswith("time/")}
    assert sum(times.values()) == pytest.approx(1, abs=1e-6)  # logged in float32
    for name, seconds in SLEEPS.items():
        assert times[name] == pytest.approx(seconds / sum(SLEEPS.values()), abs=1e-6), name
    assert line["train/data_wait"] == times["data"]
    assert times["other"] == pytest.approx(0, abs=1e-6)


def test_validation_is_not_training(line):
    assert "time/validation" not in line
    # validation lies within the window and takes 0.2 s
    assert line["train/step_s"] == pytest.approx(sum(SLEEPS.values()), rel=1e-6)


def test_speed_and_mfu_are_counts_over_time(line):
    (row,) = SleepingData(0, 1)
    assert line["train/tokens_per_s"] == pytest.approx(16 / line["train/step_s"], rel=1e-5)
    assert line["train/samples_per_s"] == pytest.approx(1 / line["train/step_s"], rel=1e-5)
    flops = flops_of(build_model("model=qwen3vl_tiny", device="meta"), row.micro_batches[0]).total
    assert line["train/mfu"] == pytest.approx(flops / line["train/step_s"] / 1e9, rel=1e-5)
    assert 0.05 < line["memory/rss_gib"] < 64


def test_the_warm_up_is_left_out(tmp_path):
    class SlowStart(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            pass_time(5.0 if batch_idx < 3 else 0.0)

    meter = StepMeter(warmup_steps=3)
    line = fit(tmp_path, meter, max_steps=8, callbacks=[SlowStart(), meter])
    assert line["train/step_s"] == pytest.approx(sum(SLEEPS.values()), rel=1e-6)


def test_a_run_within_its_warm_up_logs_no_speed(tmp_path):
    meter = StepMeter(warmup_steps=5)
    with pytest.raises(FileNotFoundError):  # no line at all
        fit(tmp_path, meter, dict.fromkeys(SLEEPS, 0.0), max_steps=5)


def test_a_timeline_gives_inner_sections_their_own_time():
    timeline = Timeline(StandingClock())
    sections = Sections()
    sections.attach(timeline)
    timeline.outside("data")
    pass_time(1)
    with sections("forward"):
        pass_time(2)
        with sections("collective"):
            pass_time(4)
        pass_time(8)
    pass_time(16)
    timeline.end_step()
    (seconds,) = timeline.finished()
    assert seconds == pytest.approx({"other": 0, "data": 17, "forward": 10, "collective": 4})
    assert list(timeline.finished()) == []


@pytest.mark.distributed
def test_ranks_are_combined(tmp_path):
    sleeps = dict.fromkeys(SLEEPS, 0.004)
    line = fit(tmp_path, StepMeter(window=6), sleeps, devices=2, strategy="ddp_fork", max_steps=8)
    # 16 tokens and one sample on rank 0; 2 * 29 and 2 * 2 on rank 1, with 2 * 24**2 squared patches
    step_s = 5 * 0.004 + 0.01  # rank 1 takes longer
    assert line["train/step_s"] == pytest.approx(step_s, rel=1e-6)
    assert line["train/tokens_per_s"] == pytest.approx(16 / 0.02 + 58 / step_s, rel=1e-6)
    assert line["train/samples_per_s"] == pytest.approx(1 / 0.02 + 4 / step_s, rel=1e-6)
    assert line["balance/tokens"] == pytest.approx(58 / 37, rel=1e-6)
    assert line["balance/frame_pairs"] == pytest.approx(2, rel=1e-6)
    assert line["balance/step_s"] == pytest.approx(step_s / 0.025, rel=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_times_are_those_of_the_gpu():
    timeline = Timeline(CudaClock())
    sections = Sections()
    sections.attach(timeline)
    a = torch.randn(8192, 8192, device="cuda")
    a @ a
    torch.cuda.synchronize()
    timeline.end_step()
    with sections("forward"):
        for _ in range(4):
            a @ a
    with sections("backward"):
        for _ in range(8):
            a @ a
    timeline.end_step()
    launched = len(list(timeline.finished()))
    assert launched < 2  # the second step is still running: nothing has waited for it
    torch.cuda.synchronize()
    *_, seconds = timeline.finished()
    assert seconds["backward"] / seconds["forward"] == pytest.approx(2, rel=0.2)
