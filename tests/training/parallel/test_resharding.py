"""A run goes on from the checkpoint of any layout, under any other."""

from __future__ import annotations

import faulthandler
from pathlib import Path

import pytest
from torch import distributed as dist

from tests.training.parallel.test_expert import SHARES
from tests.training.parallel.test_pipeline import EXPERTS, difference, fit
from tests.training.ranks import run_on_ranks

# each takes one step, from where the one before has stopped
LAYOUTS: dict[str, dict[str, int]] = {
    "fsdp": {"shard": 4},
    "tp_fsdp": {"tensor": 2, "shard": 2},
    "cp_fsdp": {"context": 2, "shard": 2},
    "ep_fsdp": {"shard": 4, "expert": 2},
    "pp_fsdp": {"pipeline": 2, "shard": 2, "virtual_stages": 2},
    "pp_ep_zero1": {"pipeline": 2, "shard": 2, "expert": 2, "zero": 1},
    "hsdp": {"replicate": 2, "shard": 2},
}
OPTIONS = {"model": EXPERTS, "shares": SHARES, "num_layers": 5, "epoch": 20}


def take_turns(folder: Path) -> None:
    """One step by each layout."""
    faulthandler.dump_traceback_later(230, exit=True)
    dist.init_process_group("gloo")
    start: Path | None = None
    for step, (name, layout) in enumerate(LAYOUTS.items(), 1):
        trainer, *_ = fit("per_token", layout, step, start, **OPTIONS)
        assert trainer.global_step == step
        start = folder / f"{name}.ckpt"
        trainer.save_checkpoint(start)
    dist.destroy_process_group()


@pytest.mark.distributed
def test_any_layout_goes_on_from_the_checkpoint_of_any_other(tmp_path):
    for done in run_on_ranks("tests.training.parallel.test_resharding:take_turns", 4, tmp_path):
        assert done.returncode == 0, done.stderr[-4000:]
    alone = []
    for step in range(2, len(LAYOUTS) + 2):
        start = tmp_path / "alone.ckpt" if alone else None
        trainer, module, _ = fit("per_token", None, step, start, **OPTIONS)
        trainer.save_checkpoint(tmp_path / "alone.ckpt")
        alone.append(module.model.state_dict())
    for step, (name, expected) in enumerate(zip(LAYOUTS, alone, strict=True), 1):
        _, module, _ = fit("per_token", None, step + 1, tmp_path / f"{name}.ckpt", **OPTIONS)
        worst = difference(module.model.state_dict(), expected)
        print(name, worst)
        assert worst < 2e-6, name  # measured 1.2e-7
