"""Ranks that share each matrix take the steps of one process."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.samples import PAD_ID, image_example, text_example, two_images_example, video_example
from tests.training.ranks import run_on_ranks
from vlmkit.batch import VLMBatch
from vlmkit.build import build, build_model, compose_config
from vlmkit.data.collate import collate
from vlmkit.errors import ConfigError
from vlmkit.losses.base import Loss
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.training.parallel.expert import apply_expert_parallel
from vlmkit.training.parallel.layout import Layout
from vlmkit.training.parallel.meshes import Meshes
from vlmkit.training.parallel.sharding import shard_weights
from vlmkit.training.parallel.tensor import apply_tensor_parallel, check, one_line
from vlmkit.training.parallel.vocab_parallel import vocab_parallel

# rows of packed samples, ragged; the second micro-batch is text alone
ROWS = [
    [
        [text_example(0, answer=9), image_example(1)],
        [two_images_example(2), video_example(3), text_example(4)],
    ],
    [[text_example(6, answer=2)], [text_example(7, answer=5), text_example(8)]],
]
DENSE, EXPERTS = "qwen3vl_tiny", "qwen3vl_tiny_moe"
CASES = (
    ("per_sample", DENSE, "size.tie_embeddings=true"),
    ("per_token", DENSE, "size.tie_embeddings=false"),
    ("sqrt_token", EXPERTS, "size.tie_embeddings=false"),
)


def micro_batches() -> list[VLMBatch]:
    return [collate(rows, pad_id=PAD_ID, merge_size=2) for rows in ROWS]


def model_and_loss(name: str, size: str, *overrides: str) -> tuple[Qwen3VL, Loss]:
    config = compose_config(
        f"model={size}", f"loss={name}", "run_dir=none", "loss.z_coefficient=0.01",
        "loss.chunk_tokens=7", *overrides,
    )  # fmt: skip
    torch.manual_seed(0)
    return build_model(config=config), build(config.module.loss)


def shard(model: Qwen3VL, meshes: Meshes) -> None:
    apply_expert_parallel(model, meshes)
    shard_weights(model, meshes)


def whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def backward(model: nn.Module, loss: Loss, batches: list[VLMBatch], scale: float) -> Tensor:
    total = torch.zeros(())
    for batch in batches:
        result = model(batch, read_out=loss).read_out
        (result.numerator * scale).backward()
        total += result.numerator.detach()
    return total


def worst(ours: nn.Module, theirs: nn.Module, what: str) -> float:
    def value(parameter: nn.Parameter) -> Tensor:
        found = parameter.grad if what == "grad" else parameter.detach()
        assert found is not None
        return whole(found)

    expected = {name: value(parameter) for name, parameter in theirs.named_parameters()}
    found = {name: value(parameter) for name, parameter in ours.named_parameters()}
    assert expected.keys() == found.keys()
    return max(float((found[name] - expected[name]).abs().max()) for name in expected)


def compare(folder: Path, layout: dict[str, int]) -> None:
    """Write the worst differences from one process."""
    dist.init_process_group("gloo")
    meshes = Meshes.make(Layout(**layout), "cpu")
    found: dict[str, Any] = {}
    for case in CASES:
        name = case[0]
        alone, loss = model_and_loss(*case)
        shared, _ = model_and_loss(*case)
        apply_tensor_parallel(shared, meshes)
        shard(shared, meshes)
        divided = vocab_parallel(loss, meshes)

        batches = micro_batches()
        denominator = float(sum(loss.denominator(batch) for batch in batches))
        rank, ranks = meshes.tokens.get_local_rank(), meshes.tokens.size()
        mine = batches[rank::ranks]
        optimizers = [
            # eps above the rounding of gradients, which AdamW would otherwise blow up to whole steps
            torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-4)
            for model in (alone, shared)
        ]
        for step in range(3):
            expected = backward(alone, loss, batches, 1 / denominator)
            total = backward(shared, divided, mine, ranks / denominator)
            dist.all_reduce(total, group=meshes.tokens.get_group())
            found[f"{name} loss {step}"] = float((total - expected).abs() / expected)
            found[f"{name} gradient {step}"] = worst(shared, alone, "grad")
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        found[f"{name} weights"] = worst(shared, alone, "data")
        with torch.no_grad():
            for batch in batches:
                one = alone(batch, read_out=loss.score).read_out
                two = shared(batch, read_out=divided.score).read_out
                assert torch.equal(one.correct, two.correct)
                assert torch.equal(one.sample_ids, two.sample_ids)
                error = (one.nll - two.nll).abs().max() / one.nll.max()
                found[f"{name} score"] = max(found.get(f"{name} score", 0.0), float(error))
    found["calls"] = collectives(meshes)
    if dist.get_rank() == 0:
        (folder / "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


class CollectiveCounter(TorchDispatchMode):
    """Functional collectives by name; CommDebugMode of torch 2.11 fails on what our modules return."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if DTensor in types:
            return NotImplemented  # it comes again, as what the DTensor does
        if func.namespace == "_c10d_functional" and "wait" not in func.__name__:
            self.calls[func.__name__.split(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def collectives(meshes: Meshes) -> dict[str, int]:
    """Of forward and backward pass, per decoder layer that receives nothing: by difference."""
    counts = []
    for layers in (2, 3):
        model, loss = model_and_loss("per_token", DENSE, f"size.num_layers={layers}")
        apply_tensor_parallel(model, meshes)
        shard(model, meshes)
        with CollectiveCounter() as counter:
            backward(model, vocab_parallel(loss, meshes), micro_batches()[:1], 1.0)
        counts.append(counter.calls)
    return dict(counts[1] - counts[0])


@pytest.mark.distributed
@pytest.mark.parametrize("layout", [{"tensor": 2}, {"tensor": 2, "shard": 2}])
def test_ranks_that_share_matrices_equal_one_process(layout, tmp_path):
    world = 2 * layout.get("shard", 1)
    for done in run_on_ranks(
        "tests.training.parallel.test_tensor:compare", world, tmp_path, layout=layout
    ):
        assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    calls = found.pop("calls")
    if os.environ.get("SHOW"):
        print(json.dumps(found, indent=1), calls)
    for name, error in found.items():
        # measured: losses 1.2e-7 and scores 7.6e-8 of themselves, gradients 1.9e-7, weights 2.2e-7
        assert error < 2e-6, (name, error)
    # forward and backward each: two gathers and two scatters of the tokens
    assert calls["all_gather_into_tensor"] == 4
    assert calls["reduce_scatter_tensor"] == 4
    # of gradients of the four norms' gains, a few numbers each
    assert calls["all_reduce"] == 4


def test_one_line_changes_no_token():
    model, loss = model_and_loss("per_token", DENSE)
    for batch in micro_batches():
        line = one_line(batch, 16)
        assert line.input_ids.shape[0] == 1
        assert line.input_ids.numel() % 16 == 0
        assert line.num_tokens == batch.num_tokens
        with torch.no_grad():
            expected = model(batch, read_out=loss.score).read_out
            found = model(line, read_out=loss.score).read_out
        assert torch.equal(found.sample_ids, expected.sample_ids)
        torch.testing.assert_close(found.nll, expected.nll, rtol=0, atol=5e-6)  # measured 0
        assert one_line(line, 16) is line


@pytest.mark.parametrize(
    ("tensor", "overrides", "message"),
    [
        (4, (), "parallel.tensor=4 must divide language num_kv_heads=2"),
        (2, ("size.vocab_size=1023",), "parallel.tensor=2 must divide vocab_size=1023"),
        (2, ("size.intermediate_dim=127",), "must divide intermediate_dim of layer 0=127"),
    ],
)
def test_what_does_not_divide_is_refused(tensor, overrides, message):
    with torch.device("meta"):
        model = build_model("model=qwen3vl_tiny", *overrides)
    with pytest.raises(ConfigError, match=message):
        check(model, tensor)


def test_unknown_parts_and_adapters_are_refused():
    model = build_model("model=qwen3vl_tiny")
    model.fusion.lora_A = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=r"parallel.tensor=2 with LoRA: .*fusion\.lora_A"):
        check(model, 2)
    model.vision = nn.Identity()
    with pytest.raises(ConfigError, match="vision is Identity, which cannot be divided"):
        check(model, 2)
