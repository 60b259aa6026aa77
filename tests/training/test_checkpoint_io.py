"""Lightning's state through folders of safetensors and JSON."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import safetensors.torch
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from torch import nn
from torch.optim import SGD, AdamW, Muon
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics import MeanMetric

from vlmkit.checkpoint.folder import CheckpointFolder
from vlmkit.checkpoint.manifest import MANIFEST
from vlmkit.checkpoint.store import CheckpointStore
from vlmkit.errors import CheckpointError
from vlmkit.training.checkpoint_io import SafeCheckpointIO, split_weights
from vlmkit.training.optimizer_state import join_states, match_by_name, split_states


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 4)
        self.norm = nn.BatchNorm1d(8)  # its count of batches is an int64 of no dimension
        self.frozen = nn.Parameter(torch.ones(3, dtype=torch.bfloat16), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)).relu())


def named(model: nn.Module, dims: tuple[int, ...] = (1, 2)) -> list[tuple[str, nn.Parameter]]:
    return [(n, p) for n, p in model.named_parameters() if p.requires_grad and p.ndim in dims]


def by_dimension(model: nn.Module) -> list[dict[str, Any]]:
    return [
        {"params": named(model, (2,)), "weight_decay": 0.1},
        {"params": named(model, (1,)), "weight_decay": 0.0, "component": "rest"},
    ]


OPTIMIZERS = {
    "sgd": lambda model: [SGD(by_dimension(model), lr=0.1, momentum=0.9)],
    "sgd without state": lambda model: [SGD(by_dimension(model), lr=0.1)],
    "adamw": lambda model: [AdamW(by_dimension(model), lr=0.1)],
    "fused": lambda model: [AdamW(by_dimension(model), lr=0.1, fused=True)],
    "two": lambda model: [Muon(named(model, (2,)), lr=0.1), AdamW(named(model, (1,)), lr=0.1)],
}


class Module(L.LightningModule):
    def __init__(self, make_optimizers) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model, self.make_optimizers = Toy(), make_optimizers
        self.losses: list[float] = []
        self.mean = MeanMetric()
        self.mean.persistent(True)

    def configure_optimizers(self) -> Any:
        optimizers = self.make_optimizers(self.model)
        for optimizer in optimizers:
            optimizer.register_load_state_dict_pre_hook(match_by_name)
        rate = torch.optim.lr_scheduler.StepLR
        return optimizers, [rate(optimizer, step_size=2, gamma=0.7) for optimizer in optimizers]

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        loss = (self.model(batch) - batch).square().mean()
        self.manual_backward(loss)
        self.mean.update(loss.detach())
        self.losses.append(float(loss.detach()))
        optimizers, schedules = self.optimizers(), self.lr_schedulers()
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            optimizer.step()
            optimizer.zero_grad()
        for schedule in schedules if isinstance(schedules, list) else [schedules]:
            schedule.step()


class Counter(Callback):
    def __init__(self) -> None:
        self.seen = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.seen += 1

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "best": float("inf"), 3: (torch.tensor(self.seen), None)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state["best"] == float("inf")
        assert int(state[3][0]) == state["seen"]
        self.seen = state["seen"]


class SaveAt(Callback):
    """Saves in the middle of the run, and remembers what there was to save."""

    def __init__(self, step: int, folder: Path) -> None:
        self.step, self.folder = step, folder
        self.saved: dict[str, Any] = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.folder)
            self.saved = copy.deepcopy(everything(trainer))


class Stream(IterableDataset):
    """Step after step, each a function of its number."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __iter__(self) -> Iterator[torch.Tensor]:
        for step in itertools.count(self.first):
            yield torch.randn(6, 4, generator=torch.Generator().manual_seed(step))


class Data(L.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.resumed: Any = None

    def train_dataloader(self) -> DataLoader:
        first = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return DataLoader(Stream(first), batch_size=None)

    def state_dict(self) -> dict[str, Any]:
        return {"order": {"seed": 2**70, "sources": ["a", "b"]}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.resumed = state


def fit(
    make_optimizers, steps: int, start: Path | None = None, callbacks: tuple[Callback, ...] = ()
) -> L.Trainer:
    torch.manual_seed(0 if start is None else 1)  # a resumed run must not live on its seed
    trainer = L.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
        callbacks=[Counter(), *callbacks], plugins=[SafeCheckpointIO(config_hash="abc")],
    )  # fmt: skip
    trainer.fit(Module(make_optimizers), Data(), ckpt_path=start)
    return trainer


def everything(trainer: L.Trainer) -> dict[str, Any]:
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_run_ends_with_the_state_of_one_that_never_stopped(name, tmp_path):
    make = OPTIMIZERS[name]
    per_step = 2 if name == "two" else 1  # Lightning counts the steps of all optimisers
    folder = tmp_path / "checkpoints" / "step-00000003"
    saving = SaveAt(3 * per_step, folder)
    whole = fit(make, 6 * per_step, callbacks=(saving,))
    assert same(saving.saved, SafeCheckpointIO().load_checkpoint(folder))
    resumed = fit(make, 6 * per_step, start=folder, callbacks=(SaveAt(0, folder),))
    assert resumed.lightning_module.losses == whole.lightning_module.losses[3:]
    assert same(everything(resumed), everything(whole))
    assert resumed.datamodule.resumed == whole.datamodule.state_dict()


def test_what_the_files_hold(tmp_path):
    trainer = fit(OPTIMIZERS["adamw"], 2)
    folder = tmp_path / "step-00000002"
    trainer.save_checkpoint(folder)
    model = trainer.lightning_module.model
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    assert same(weights, dict(model.state_dict()))
    moments = safetensors.torch.load_file(folder / "optimizer.safetensors")
    assert moments.keys() == {
        f"{name}/{slot}" for name, _ in named(model) for slot in ("step", "exp_avg", "exp_avg_sq")
    }
    manifest = CheckpointFolder(folder).verify().manifest
    assert (manifest.step, manifest.world_size, manifest.config_hash) == (2, 1, "abc")
    assert json.loads((folder / "state.json").read_text())["trainer"]["global_step"] == 2
    assert not [path for path in folder.iterdir() if path.suffix not in (".json", ".safetensors")]


@pytest.mark.filterwarnings("ignore:.*no pre-optimization state was saved")
def test_lightnings_own_callback_writes_and_deletes_folders(tmp_path):
    callback = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=1, filename="{step}")
    trainer = fit(OPTIMIZERS["adamw"], 3, callbacks=(callback,))
    assert [path.name for path in tmp_path.iterdir()] == ["step=3.ckpt"]
    assert CheckpointFolder(tmp_path / "step=3.ckpt").verify().step == 3
    trainer.strategy.remove_checkpoint(tmp_path / "gone.ckpt")  # no error
    (tmp_path / "mine").mkdir()
    with pytest.raises(CheckpointError, match="mine is not deleted"):
        trainer.strategy.remove_checkpoint(tmp_path / "mine")


def test_damage_and_pickles_are_refused_by_name(tmp_path):
    store = CheckpointStore(tmp_path)
    fit(OPTIMIZERS["adamw"], 1).save_checkpoint(store.path(1))
    assert store.complete() == [1]
    path = store.path(1) / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors is damaged"):
        fit(OPTIMIZERS["adamw"], 2, start=store.path(1))
    torch.save({}, tmp_path / "old.ckpt")
    with pytest.raises(CheckpointError, match=r"old\.ckpt is a file"):
        SafeCheckpointIO().load_checkpoint(tmp_path / "old.ckpt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=MANIFEST):
        SafeCheckpointIO().load_checkpoint(tmp_path / "empty")


# --- optimisers by name --------------------------------------------------------------------------------


def trained(make_optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Toy()
    optimizer = make_optimizer(model)
    for _ in range(2):
        model(torch.randn(6, 4)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def hooked(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    optimizer.register_load_state_dict_pre_hook(match_by_name)
    return optimizer


def moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {name: optimizer.state.get(parameter, {}) for name, parameter in named(model)}


def through_files(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return join_states(*split_states([optimizer.state_dict()]))[0]


def test_moments_follow_names_when_groups_change():
    model, optimizer = trained(lambda m: AdamW(by_dimension(m), lr=0.1))
    other = Toy()
    groups = [
        {"params": [pair], "lr": 0.01 * i} for i, pair in enumerate(reversed(named(other)), start=1)
    ]
    new = hooked(AdamW(groups, lr=1.0))
    new.load_state_dict(through_files(optimizer))
    assert same(moments(other, new), moments(model, optimizer))
    assert [group["lr"] for group in new.param_groups] == [0.01, 0.02, 0.03, 0.04, 0.05, 0.06]


def test_groups_of_the_same_parameters_keep_their_settings_in_any_order():
    _, optimizer = trained(lambda m: AdamW(by_dimension(m), lr=0.1))
    optimizer.param_groups[1]["lr"] = 0.05
    new = hooked(AdamW(by_dimension(Toy())[::-1], lr=1.0))
    new.load_state_dict(through_files(optimizer))
    assert [group["lr"] for group in new.param_groups] == [0.05, 0.1]
    assert [group["weight_decay"] for group in new.param_groups] == [0.0, 0.1]


def test_parameters_without_a_gradient_so_far_have_no_moments():
    model = Toy()
    optimizer = AdamW(by_dimension(model), lr=0.1)
    model.last.bias.sum().backward()
    optimizer.step()
    other = Toy()
    new = hooked(AdamW(by_dimension(other), lr=0.1))
    new.load_state_dict(through_files(optimizer))
    assert same(moments(other, new), moments(model, optimizer))
    assert [name for name, slots in moments(other, new).items() if slots] == ["last.bias"]


def test_what_does_not_match_is_listed():
    _, optimizer = trained(lambda m: AdamW(by_dimension(m), lr=0.1))
    state = through_files(optimizer)
    fewer = hooked(AdamW(named(Toy(), (2,)), lr=0.1))
    with pytest.raises(CheckpointError, match=r"no longer trained: first\.bias.*norm\.bias"):
        fewer.load_state_dict(state)
    more = hooked(AdamW([*named(Toy()), ("adapter.weight", nn.Parameter(torch.ones(2)))], lr=0.1))
    with pytest.raises(CheckpointError, match=r"without saved state: adapter\.weight"):
        more.load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"another kind of optimiser.*betas.*momentum"):
        hooked(SGD(by_dimension(Toy()), lr=0.1)).load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"\(name, parameter\) pairs"):
        split_states([AdamW(Toy().parameters()).state_dict()])
    with pytest.raises(CheckpointError, match=r"have one name: first\.weight"):
        split_states([optimizer.state_dict(), optimizer.state_dict()])


def test_tied_parameters_are_written_once(tmp_path):
    model = Toy()
    model.last.weight = nn.Parameter(torch.randn(4, 4))
    model.tied = nn.Linear(4, 4)
    model.tied.weight = model.last.weight
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    weights, tied, _ = split_weights(state, "model.")
    assert tied == {"tied.weight": "last.weight"}
    assert "tied.weight" not in weights
    io = SafeCheckpointIO()
    io.save_checkpoint({"state_dict": state, "global_step": 1}, tmp_path / "c")
    assert same(io.load_checkpoint(tmp_path / "c")["state_dict"], state)
