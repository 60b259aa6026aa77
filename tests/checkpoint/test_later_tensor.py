"""Divided tensors are put together one at a time, in an order that all ranks know, whatever happens."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

from vlmkit.checkpoint.folder import CheckpointFolder, DiskFullError
from vlmkit.checkpoint.later_tensor import LaterTensor, give_parts, later_tensors
from vlmkit.training.checkpoint_io import SafeCheckpointIO

SHARD_BYTES = 300


class Recorded(LaterTensor):
    """Says when it was asked for, and that nobody keeps what it gave."""

    asked: list[str]
    given: list[weakref.ref[Tensor]]

    def __init__(self, name: str, value: Tensor) -> None:
        super().__init__(value.shape, value.dtype)
        self.name, self.value = name, value

    def gather(self) -> Tensor:
        assert all(ref() is None for ref in self.given), "two whole tensors at a time"
        self.asked.append(self.name)
        whole = self.value.clone()
        self.given.append(weakref.ref(whole))
        return whole


@pytest.fixture
def recorded() -> type[Recorded]:
    class Fresh(Recorded):
        asked: list[str] = []  # noqa: RUF012
        given: list[weakref.ref[Tensor]] = []  # noqa: RUF012

    return Fresh


def checkpoint_of(kind: type[Recorded]) -> dict:
    torch.manual_seed(0)
    values = {f"w{i}": torch.randn(5, i + 3) for i in range(6)}
    values["w2"] = values["w2"].double()
    values["w5"] = values["w5"].bfloat16()
    weights = {f"model.{n}": kind(n, v) for n, v in values.items() if n != "w3"}
    weights["model.w3"] = values["w3"]  # every rank has it
    moments = {i: {"exp_avg": kind(f"{n}/m", v)} for i, (n, v) in enumerate(values.items())}
    group = {"lr": 0.1, "params": list(moments), "param_names": list(values)}
    states = [{"state": moments, "param_groups": [group]}]
    return {"global_step": 3, "state_dict": weights, "optimizer_states": states}


def test_what_is_written_is_what_the_others_give_and_in_their_order(tmp_path, recorded):
    io = SafeCheckpointIO(shard_bytes=SHARD_BYTES)
    checkpoint = checkpoint_of(recorded)
    io.save_checkpoint(checkpoint, tmp_path / "step=3")
    written = list(recorded.asked)
    assert len(written) == 11
    recorded.asked.clear()
    io.give_parts(checkpoint_of(recorded))  # another rank
    assert recorded.asked == written
    tensors = CheckpointFolder(tmp_path / "step=3").tensors("model")
    for name, expected in checkpoint["state_dict"].items():
        value = expected.value if isinstance(expected, LaterTensor) else expected
        assert torch.equal(tensors[name.removeprefix("model.")], value)
    assert len(list((tmp_path / "step=3").glob("model-*.safetensors"))) > 1
    recorded.asked.clear()
    give_parts({"model": {}}, SHARD_BYTES)
    assert recorded.asked == []


def test_nobody_waits_for_a_rank_that_could_not_write(tmp_path, recorded, monkeypatch):
    """Else the others would hang in the next collective."""
    io = SafeCheckpointIO(shard_bytes=SHARD_BYTES)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 0})())
    with pytest.raises(DiskFullError):
        io.save_checkpoint(checkpoint_of(recorded), tmp_path / "step=3")
    refused = list(recorded.asked)
    recorded.asked.clear()
    io.give_parts(checkpoint_of(recorded))
    assert refused == recorded.asked
    assert len(refused) == 11


def test_order_is_that_of_files_then_of_wide_numbers(recorded):
    tensors = {n: recorded(n, torch.zeros(4, dtype=d)) for n, d in (
        ("a", torch.bfloat16), ("c", torch.float32), ("b", torch.float32), ("d", torch.float64),
    )}  # fmt: skip
    order = [tensor.name for tensor in later_tensors({"x": tensors}, 10**9)]
    assert order == ["d", "b", "c", "a"]
