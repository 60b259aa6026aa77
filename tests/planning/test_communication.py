"""Counted collectives of a step against the analytic model, on gloo ranks."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.planning.test_memory import batch_of
from tests.training.ranks import run_on_ranks
from vlmkit.build import build, build_model, compose_config
from vlmkit.planning.communication import Communication
from vlmkit.planning.memory import Divided
from vlmkit.planning.micro_batch import MicroBatch
from vlmkit.planning.parts import parts_of
from vlmkit.planning.runs import PartRuns, dims_of
from vlmkit.planning.state import Precision
from vlmkit.planning.trace import Tracer
from vlmkit.training.meters.work import sample_lengths
from vlmkit.training.parallel.layout import Layout
from vlmkit.training.parallel.meshes import Meshes
from vlmkit.training.parallel.sharding import shard_weights, without_exchange
from vlmkit.training.parallel.tensor import apply_tensor_parallel
from vlmkit.training.parallel.vocab_parallel import vocab_parallel

KINDS = {
    "all_gather": "all-gather",
    "allgather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "allreduce": "all-reduce",
    "all_reduce": "all-reduce",
}


class Counted(TorchDispatchMode):
    """Calls and payloads by kind: what a gather returns, what a reduction is given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if DTensor in types:
            return NotImplemented
        out = func(*args, **(kwargs or {}))
        name = func.__name__
        if func.namespace not in ("_c10d_functional", "c10d") or "wait" in name:
            return out
        kind = next((kind for key, kind in KINDS.items() if key in name), None)
        if kind is not None:
            leaves = tree_leaves((args, kwargs, out))
            sizes = [t.numel() * t.element_size() for t in leaves if isinstance(t, torch.Tensor)]
            self.calls[kind] += 1
            self.bytes[kind] += max(sizes)
        return out


CASES = [
    ({"shard": 2, "zero": 3}, 1),
    ({"shard": 2, "zero": 3}, 2),
    ({"shard": 2, "zero": 2}, 2),
    ({"shard": 2, "zero": 1}, 2),
    ({"tensor": 2, "zero": 3}, 1),
    ({"tensor": 2, "zero": 3}, 2),
]


def count_all(folder: Path) -> None:
    dist.init_process_group("gloo")
    found = [count(Layout(**layout), micro_batches) for layout, micro_batches in CASES]
    if dist.get_rank() == 0:
        (folder / "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def count(sizes: Layout, micro_batches: int) -> dict[str, Any]:
    meshes = Meshes.make(sizes, "cpu")
    config = compose_config(
        "model=qwen3vl_tiny", "size.tie_embeddings=false", "loss=per_token", "run_dir=none"
    )
    model = build_model(config=config)
    loss = vocab_parallel(build(config.module.loss), meshes)
    apply_tensor_parallel(model, meshes)
    shard_weights(model, meshes)
    batch = batch_of(0, samples=3)

    def step() -> None:
        for i in range(micro_batches):
            if i < micro_batches - 1:
                with without_exchange(model, sizes):
                    model(batch, read_out=loss).read_out.numerator.backward()
            else:
                model(batch, read_out=loss).read_out.numerator.backward()
        model.zero_grad()

    step()  # lazy initialisation is over
    with Counted() as counted:
        step()
    return {"calls": counted.calls, "bytes": counted.bytes}


def planned(layout: Layout, micro_batches: int) -> dict[str, tuple[int, float]]:
    from tests.planning import devices

    config = compose_config(
        "model=qwen3vl_tiny", "size.tie_embeddings=false", "loss=per_token", "run_dir=none"
    )
    model = build_model(config=config, device="meta")
    batch = batch_of(0, samples=3)
    micro = MicroBatch(
        tokens=-(-batch.input_ids.numel() // (2 * layout.tensor)) * 2 * layout.tensor,
        lengths=tuple(sample_lengths(batch)),
        frames=batch.vision.segments.lengths,
        scored=len(batch.scored_index),
        visual_tokens=batch.vision.num_visual_tokens,
        source="the batch",
    )
    precision = Precision(weights=torch.float32, autocast=False)
    runs = PartRuns(
        Tracer(torch.float32, torch.float32), micro, dims_of(model), 2, build(config.module.loss)
    )
    divided = Divided(layout=layout, precision=precision, is_mesh=True)
    traffic = Communication(divided, devices.CPU, runs, micro_batches).of(parts_of(model, layout))
    found: dict[str, tuple[int, float]] = {}
    for t in traffic:
        calls, payload = found.get(t.kind, (0, 0.0))
        found[t.kind] = calls + t.calls, payload + t.payload
    return found


@pytest.mark.distributed
def test_collectives_of_a_step_are_those_of_the_plan(tmp_path):
    for done in run_on_ranks("tests.planning.test_communication:count_all", 2, tmp_path):
        assert done.returncode == 0, done.stderr[-3000:]
    counts = json.loads((tmp_path / "found.json").read_text())
    for (layout, micro_batches), counted in zip(CASES, counts, strict=True):
        expected = planned(Layout(**layout), micro_batches)
        if os.environ.get("SHOW"):
            print(layout, micro_batches, counted, expected)
        calls = {kind: number for kind, (number, _) in expected.items()}
        payloads = {kind: payload for kind, (_, payload) in expected.items()}
        assert counted["calls"] == calls, layout
        assert counted["bytes"] == pytest.approx(payloads), layout  # measured: equal to the byte
