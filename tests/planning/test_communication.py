"""Counted collectives of a step against the analytic model, on gloo ranks."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
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
from vlmkit.planning.parts import parts_of, stages_of_line
from vlmkit.planning.runs import PartRuns, dims_of
from vlmkit.planning.state import Precision
from vlmkit.planning.trace import Tracer
from vlmkit.training.meters.work import sample_lengths
from vlmkit.training.parallel.context import apply_context_parallel, context_parallel
from vlmkit.training.parallel.context_attention import UlyssesAttention
from vlmkit.training.parallel.expert import apply_expert_parallel, mixtures_of
from vlmkit.training.parallel.layout import Layout
from vlmkit.training.parallel.meshes import Meshes
from vlmkit.training.parallel.pipeline import apply_pipeline
from vlmkit.training.parallel.sharding import shard_weights, without_exchange
from vlmkit.training.parallel.tensor import apply_tensor_parallel
from vlmkit.training.parallel.vocab_parallel import vocab_parallel
from vlmkit.training.passes import Objective

KINDS = {
    "all_gather": "all-gather",
    "allgather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "allreduce": "all-reduce",
    "all_reduce": "all-reduce",
    "alltoall": "all-to-all",
    "send": "send",
}


class Counted(TorchDispatchMode):
    """Calls and payloads by kind: what a gather returns, what a reduction or an all-to-all is given."""

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
            leaves = tree_leaves(args[1] if kind == "all-to-all" else (args, kwargs, out))
            tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
            if all(t.numel() == 1 and t.dtype == torch.int32 for t in tensors):
                return out  # torch's schedules greet their neighbours when they are made
            self.calls[kind] += 1
            self.bytes[kind] += max(t.numel() * t.element_size() for t in tensors)
        return out


@dataclass(frozen=True)
class Case:
    layout: Mapping[str, Any]
    micro_batches: int = 1
    model: str = "qwen3vl_tiny"
    num_layers: int = 2

    @property
    def sizes(self) -> Layout:
        return Layout(**self.layout)

    def config(self) -> Any:
        return compose_config(
            f"model={self.model}", "size.tie_embeddings=false", "loss=per_token", "run_dir=none",
            f"size.num_layers={self.num_layers}",
        )  # fmt: skip


EXPERTS = "qwen3vl_tiny_moe"
CASES = [
    Case({"shard": 2}),
    Case({"shard": 2}, 2),
    Case({"shard": 2, "zero": 2}, 2),
    Case({"shard": 2, "zero": 1}, 2),
    Case({"tensor": 2}),
    Case({"tensor": 2}, 2),
    Case({"tensor": 2}, 2, EXPERTS),
    Case({"context": 2}, 2),
    Case({"context": 2, "context_attention": UlyssesAttention}, 2),
    Case({"shard": 2, "expert": 2}, 2, EXPERTS),
    Case({"tensor": 2, "expert": 2}, 1, EXPERTS),
    Case({"pipeline": 2}, 3, num_layers=3),
    Case({"pipeline": 2, "virtual_stages": 2}, 2, num_layers=5),
]


def count_all(folder: Path) -> None:
    dist.init_process_group("gloo")
    found = [count(case) for case in CASES]
    (folder / f"found{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def count(case: Case) -> dict[str, Any]:
    sizes = case.sizes
    meshes = Meshes.make(sizes, "cpu")
    config = case.config()
    model = build_model(config=config)
    loss = context_parallel(vocab_parallel(build(config.module.loss), meshes), meshes)
    pipeline = apply_pipeline(model, meshes)
    apply_tensor_parallel(model, meshes)
    apply_context_parallel(model, meshes)
    apply_expert_parallel(model, meshes)
    shard_weights(model, meshes)
    batch = batch_of(0, samples=3)
    routed: list[torch.Tensor] = []
    for experts in mixtures_of(model):
        experts.register_forward_pre_hook(lambda _, args: routed.append(args[1]))

    def step() -> None:
        if pipeline is not None:
            pipeline.loss_here(loss)
            objective = Objective(
                loss=loss, denominator=torch.ones(()), routing=None, averaged_over=1
            )
            pipeline(case.micro_batches * [batch], case.micro_batches, objective)
        else:
            for i in range(case.micro_batches):
                is_last = i == case.micro_batches - 1
                with nullcontext() if is_last else without_exchange(model, sizes):
                    model(batch, read_out=loss).read_out.numerator.backward()
        model.zero_grad()

    step()  # lazy initialisation is over
    routed.clear()
    with Counted() as counted:
        step()
    return {"calls": counted.calls, "bytes": counted.bytes, "rows": rows_of(sizes, routed)}


def rows_of(sizes: Layout, routed: list[torch.Tensor]) -> tuple[int, int]:
    """Rows that this rank has sent to experts, itself among the receivers, and was sent."""
    if sizes.expert == 1:
        return 0, 0
    mine = torch.stack(routed).long()
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(every, mine)
    own = torch.stack(every).sum((0, 1)).chunk(sizes.expert)[dist.get_rank()]
    return int(mine.sum()), int(own.sum())


def planned(case: Case, rank: int) -> dict[str, tuple[int, float]]:
    from tests.planning import devices

    layout = case.sizes
    config = case.config()
    model = build_model(config=config, device="meta")
    batch = batch_of(0, samples=3)
    unit = 2 * layout.context * layout.tensor if layout.shard == 1 else 1
    micro = MicroBatch(
        tokens=-(-batch.input_ids.numel() // unit) * unit,
        lengths=tuple(sample_lengths(batch)),
        frames=batch.vision.segments.lengths,
        scored=len(batch.scored_index),
        visual_tokens=batch.vision.num_visual_tokens,
        source="the batch",
    )
    precision = Precision(weights=torch.float32, autocast=False)
    runs = PartRuns(
        Tracer(torch.float32, torch.float32), micro, dims_of(model), 2, build(config.module.loss),
        layout.context,
    )  # fmt: skip
    divided = Divided(layout=layout, precision=precision, is_mesh=True)
    stages = stages_of_line(parts_of(model, layout), layout, model)
    communication = Communication(divided, devices.CPU, runs, case.micro_batches)
    found: dict[str, tuple[int, float]] = {}
    for t in communication.of(stages[rank if layout.pipeline > 1 else 0]):
        calls, payload = found.get(t.kind, (0, 0.0))
        found[t.kind] = calls + t.calls, payload + t.payload
    return found


@pytest.mark.distributed
def test_collectives_of_a_step_are_those_of_the_plan(tmp_path):
    for done in run_on_ranks("tests.planning.test_communication:count_all", 2, tmp_path):
        assert done.returncode == 0, done.stderr[-3000:]
    counts = [json.loads((tmp_path / f"found{rank}.json").read_text()) for rank in range(2)]
    for case, *of_ranks in zip(CASES, *counts, strict=True):
        total = dict.fromkeys(("sent", "received"), 0)
        for rank, counted in enumerate(of_ranks):
            expected = planned(case, rank)
            if os.environ.get("SHOW"):
                print(case, rank, counted, expected)
            calls = {kind: number for kind, (number, _) in expected.items()}
            payloads = {kind: payload for kind, (_, payload) in expected.items()}
            assert counted["calls"] == calls, (case, rank)
            sent, received = counted["rows"]
            # the plan has even routing: what comes back was received, twice in forward and backward pass
            payloads["all-to-all"] = payloads.get("all-to-all", 0) + 2 * (received - sent) * 64 * 4
            total["sent"] += sent
            total["received"] += received
            # measured: equal to the byte
            assert counted["bytes"] == pytest.approx({k: v for k, v in payloads.items() if v}), case
        assert total["sent"] == total["received"]
