"""The moving average: its values, validation, checkpoints, resuming."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from vlmkit.errors import ConfigError
from vlmkit.training.averaging import WeightAverage


class Toy(L.LightningModule):
    """Moves its one trained weight by 1 a step; sees in validation what it is."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.model = nn.Linear(1, 1, bias=True)
        self.model.bias.requires_grad_(False)
        nn.init.zeros_(self.model.weight)
        self.validated = []

    def configure_optimizers(self):
        return torch.optim.SGD([self.model.weight], lr=1.0)

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        self.model.weight.grad = -torch.ones(1, 1)
        optimizer.step()

    def validation_step(self, batch, batch_idx):
        self.validated.append(float(self.model.weight.detach()))
        if batch == "fail":
            raise RuntimeError("stop here")


def fit(module, callback, steps, val="fine", every=1, extra=(), **rest):
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        val_check_interval=every,
        callbacks=[callback, *extra],
    )
    trainer.fit(
        module,
        DataLoader(range(steps), batch_size=None),
        DataLoader([val], batch_size=None, collate_fn=lambda x: x),
        **rest,
    )
    return trainer


def expected(steps: int, decay: float) -> list[float]:
    """Averages after each step of weights 1, 2, 3, ..., from 0."""
    average, values = 0.0, []
    for n in range(steps):
        now = min(decay, (1 + n) / (10 + n))
        average = now * average + (1 - now) * (n + 1)
        values.append(average)
    return values


def test_validation_sees_the_average_and_training_does_not():
    module, callback = Toy(), WeightAverage(decay=0.3)
    fit(module, callback, 6)
    assert module.validated == pytest.approx(expected(6, 0.3))
    assert callback.averages.keys() == {"weight"}  # nothing frozen is kept twice
    # after training the model holds the average, which is what gets exported
    assert float(module.model.weight.detach()) == pytest.approx(expected(6, 0.3)[-1])
    plain = Toy()
    fit(plain, WeightAverage(decay=0.3, validate_with_average=False), 6)
    assert plain.validated == [1, 2, 3, 4, 5, 6]


class SaveEarly(L.Callback):
    """Keeps a checkpoint of the third step, as a checkpoint callback does after validation."""

    def __init__(self, path):
        self.path = path

    def on_validation_end(self, trainer, pl_module):
        if trainer.global_step == 3:
            trainer.save_checkpoint(self.path)


@pytest.mark.filterwarnings("ignore:Be aware that when using:UserWarning")
@pytest.mark.filterwarnings("ignore:You're resuming from:UserWarning")
def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path):
    whole, callback = Toy(), WeightAverage(decay=0.9)
    fit(whole, callback, 6)
    path = tmp_path / "early.ckpt"
    fit(Toy(), WeightAverage(decay=0.9), 3, extra=[SaveEarly(path)])
    saved = torch.load(path, weights_only=False)
    assert float(saved["state_dict"]["model.weight"]) == 3.0  # the run's own, not the average
    second, resumed = Toy(), WeightAverage(decay=0.9)
    fit(second, resumed, 6, ckpt_path=path)
    assert resumed.num_updates == 6
    assert torch.equal(resumed.averages["weight"], callback.averages["weight"])
    assert second.validated == whole.validated[3:]


def test_a_crash_in_validation_leaves_the_runs_own_weights():
    module = Toy()
    with pytest.raises(RuntimeError, match="stop here"):
        fit(module, WeightAverage(decay=0.9), 2, val="fail", every=2)
    assert float(module.model.weight.detach()) == 2.0
    assert module.validated[0] != 2.0


def test_bfloat16_weights_have_a_float32_average():
    """In bfloat16 the average of a weight that went from 1 to 1.5 would stay where it is."""
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.ones_(model.weight)
    module = Toy()
    module.model = model
    callback = WeightAverage(decay=0.999, warmup=False)
    callback.on_fit_start(L.Trainer(logger=False, accelerator="cpu"), module)
    nn.init.constant_(model.weight, 1.5)
    for _ in range(100):
        callback.update(model)
    assert float(callback.averages["weight"]) == pytest.approx(1.5 - 0.5 * 0.999**100, rel=1e-5)
    lightnings = torch.optim.swa_utils.get_ema_avg_fn(0.999)
    average = torch.ones((), dtype=torch.bfloat16)
    for _ in range(100):
        average = lightnings(average, torch.tensor(1.5, dtype=torch.bfloat16), 1)
    assert float(average) == 1.0
    with callback.applied(model):
        assert float(model.weight.detach()) == pytest.approx(1.046875)
    assert float(model.weight.detach()) == 1.5


def test_bad_numbers_and_other_parameters_are_refused():
    with pytest.raises(ConfigError, match="decay must be at least 0 and below 1, got 1"):
        WeightAverage(decay=1.0)
    callback = WeightAverage()
    callback.load_state_dict({"averages": {"bias": torch.zeros(1)}, "num_updates": 1})
    with pytest.raises(ConfigError, match="averages are of other parameters, such as bias"):
        fit(Toy(), callback, 1)
