"""Logging cannot end a run."""

import logging

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers.logger import Logger
from torch import nn
from torch.utils.data import DataLoader

from vlmkit.training.guarded_logger import GuardedLogger
from vlmkit.training.jsonl_logger import JSONLLogger


class Broken(Logger):
    color = "red"

    def _fail(self, *args, **kwargs):
        raise ConnectionError("no network")

    log_metrics = log_hyperparams = log_graph = save = finalize = after_save_checkpoint = _fail
    name = version = save_dir = log_dir = root_dir = experiment = property(_fail)


class Line(L.LightningModule):
    def __init__(self, slope: float = 1.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*logger")
def test_a_run_outlives_a_logger_that_always_fails(tmp_path, caplog):
    broken = GuardedLogger(Broken())
    kept = GuardedLogger(JSONLLogger(tmp_path / "metrics.jsonl"))
    trainer = L.Trainer(
        max_steps=6,
        accelerator="cpu",
        log_every_n_steps=1,
        logger=[broken, kept],
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with caplog.at_level(logging.WARNING, "vlmkit"):
        trainer.fit(Line(), DataLoader(torch.ones(6, 1)))
    assert trainer.global_step == 6
    assert broken.num_failures >= 8  # six steps, hyperparameters, the end
    assert kept.num_failures == 0
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 6
    first, last = [each.message for each in caplog.records if each.name.startswith("vlmkit")]
    assert "no network" in first
    assert str(broken.num_failures) in last


def test_what_else_a_logger_has_can_be_reached(tmp_path):
    assert GuardedLogger(Broken()).color == "red"
    guarded = GuardedLogger(JSONLLogger(tmp_path / "m.jsonl"))
    assert guarded.path == tmp_path / "m.jsonl"
    assert not hasattr(guarded, "experiment")
    with pytest.raises(AttributeError, match="colour"):
        _ = guarded.colour
