"""Ranks that share the tokens of each row take the steps of one process."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from tests.samples import PAD_ID, image_example
from tests.training.parallel.test_strategy import SHARES, Data, module_of
from tests.training.parallel.test_tensor import (
    CASES,
    DENSE,
    backward,
    micro_batches,
    model_and_loss,
    shard,
    worst,
)
from tests.training.ranks import run_on_ranks
from vlmkit.attention.base import Attention
from vlmkit.attention.sdpa import SDPAAttention
from vlmkit.attention.varlen import VarlenAttention
from vlmkit.batch import Segments, StepBatch
from vlmkit.build import build, compose_config
from vlmkit.data.collate import collate
from vlmkit.errors import ConfigError
from vlmkit.losses.base import Loss
from vlmkit.models.generation.loop import generate
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.training.checkpoint_io import SafeCheckpointIO
from vlmkit.training.group_totals import GroupTotals
from vlmkit.training.parallel.context import OwnPlaces, apply_context_parallel, context_parallel
from vlmkit.training.parallel.context_attention import (
    AllGatherAttention,
    KeyPlan,
    UlyssesAttention,
    own_chunks,
)
from vlmkit.training.parallel.divide import DivideModule
from vlmkit.training.parallel.layout import Layout
from vlmkit.training.parallel.meshes import Meshes
from vlmkit.training.parallel.strategy import MeshStrategy
from vlmkit.training.parallel.tensor import apply_tensor_parallel
from vlmkit.training.parallel.vocab_parallel import vocab_parallel
from vlmkit.training.parallel.whole import whole_state

ATTENTIONS = {"all_gather": AllGatherAttention, "ulysses": UlyssesAttention}
LAYOUTS: dict[int, list[dict[str, Any]]] = {
    2: [{"context": 2}, {"context": 2, "context_attention": UlyssesAttention}],
    4: [{"context": 2, "shard": 2}, {"context": 2, "tensor": 2}],
}


def divided(model: Qwen3VL, loss: Loss, meshes: Meshes) -> Loss:
    apply_tensor_parallel(model, meshes)
    apply_context_parallel(model, meshes)
    return context_parallel(vocab_parallel(loss, meshes), meshes)


def compare(folder: Path) -> None:
    """Write the worst differences from one process, of gradients, steps and a trainer."""
    dist.init_process_group("gloo")
    found: dict[str, Any] = {}
    for number, sizes in enumerate(LAYOUTS[dist.get_world_size()]):
        meshes = Meshes.make(Layout(**sizes), "cpu")
        for case in CASES if sizes == {"context": 2} else CASES[number + 1 :][:1]:
            key = f"{number} {case[0]}"
            found |= {f"{key} {name}": error for name, error in steps(meshes, case).items()}
        if "tensor" not in sizes:  # whose three steps are slow on gloo
            found[f"{number} trainer"] = trained(sizes, number, folder)
    if dist.get_world_size() == 2:
        found |= {f"{name} calls": collectives(name) for name in ATTENTIONS}
        found["prompt"] = prompt(meshes)
    if dist.get_rank() == 0:
        (folder / "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def steps(meshes: Meshes, case: tuple[str, str, str]) -> dict[str, float]:
    """Three steps, and scores of tokens."""
    found: dict[str, float] = {}
    alone, loss = model_and_loss(*case)
    shared, _ = model_and_loss(*case)
    ours = divided(shared, loss, meshes)
    shard(shared, meshes)
    batches = micro_batches()
    denominator = float(sum(loss.denominator(batch) for batch in batches))
    mine = batches[meshes.samples.get_local_rank() :: meshes.samples.size()]
    optimizers = [
        # eps above the rounding of gradients, which AdamW would otherwise blow up to whole steps
        torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-4)
        for model in (alone, shared)
    ]
    for step in range(3):
        expected = backward(alone, loss, batches, 1 / denominator)
        total = backward(shared, ours, mine, meshes.tokens.size() / denominator)
        dist.all_reduce(total, group=meshes.tokens.get_group())
        found[f"loss {step}"] = float((total - expected).abs() / expected)
        found[f"gradient {step}"] = worst(shared, alone, "grad")
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    found["weights"] = worst(shared, alone, "data")
    with torch.no_grad():
        for batch in batches:
            one = alone(batch, read_out=loss.score).read_out
            two = shared(batch, read_out=ours.score).read_out
            sums = []
            for scores in (one, two):
                values = torch.stack(
                    [scores.nll, scores.correct.float(), torch.ones_like(scores.nll)]
                )
                sums.append(
                    torch.zeros(3, batch.num_samples).index_add(1, scores.sample_ids, values)
                )
            dist.all_reduce(sums[1], group=meshes.context.get_group())
            error = float(((sums[1] - sums[0]).abs() / (1 + sums[0])).max())
            found["score"] = max(found.get("score", 0.0), error)
            by_modality = []
            for model, measure in ((alone, loss), (shared, ours)):
                totals = GroupTotals(["text", "image", "video", "mixed"], torch.device("cpu"))
                result = model(batch, read_out=measure).read_out
                totals.add(batch, batch.modality_ids, result.token_nll, result.sample_ids)
                by_modality.append(totals._sums)
            dist.all_reduce(by_modality[1], group=meshes.context.get_group())
            error = float(((by_modality[1] - by_modality[0]).abs() / (1 + by_modality[0])).max())
            found["log"] = max(found.get("log", 0.0), error)
    return found


class DataWithValidation(Data):
    def val_dataloader(self) -> Any:
        assert self.trainer is not None
        share = self.trainer.distributed_sampler_kwargs or {}
        parts = [parts[0] for parts in SHARES][share.get("rank", 0) :: share.get("num_replicas", 1)]
        batches = tuple(collate([part], pad_id=PAD_ID, merge_size=2) for part in parts)
        step = StepBatch(step=0, micro_batches=batches, tokens={}, samples={})
        return DataLoader([step], batch_size=None, collate_fn=lambda x: x)  # type: ignore[arg-type, list-item]


def trainer_of(strategy: Any, devices: int) -> L.Trainer:
    return L.Trainer(
        max_steps=3,
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        plugins=[SafeCheckpointIO()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )


def fitted(strategy: Any, devices: int, loss: str) -> tuple[dict[str, float], dict[str, Any]]:
    """Numbers of the log, of the last step and of validation after it; weights."""
    module = module_of(loss)
    module.validation_names = ("held_out",)
    module.metrics = build(
        compose_config("model=qwen3vl_tiny", "run_dir=none").module,
        model=module.model, guard=None, validation_names=("held_out",),
    ).metrics  # fmt: skip
    trainer = trainer_of(strategy, devices)
    trainer.fit(module, DataWithValidation())
    numbers = {key: float(value) for key, value in trainer.callback_metrics.items()}
    return numbers, whole_state(module.model)


def trained(sizes: dict[str, Any], number: int, folder: Path) -> dict[str, float]:
    """What a trainer on the layout logs and ends with."""
    strategy = MeshStrategy(Layout(**sizes), DivideModule())
    loss = CASES[number % 3][0]
    numbers, weights = fitted(strategy, dist.get_world_size(), loss)
    if dist.get_rank() == 0:
        torch.save((loss, weights), folder / f"{number}.pt")
    return numbers


class CollectiveCounter(TorchDispatchMode):
    """Collectives by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.calls[func.__name__.split(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def collectives(attention: str) -> dict[str, int]:
    """Of forward and backward pass, per decoder layer: by difference. Weights are not sharded."""
    meshes = Meshes.make(Layout(context=2, context_attention=ATTENTIONS[attention]), "cpu")
    counts = []
    for layers in (2, 3):
        model, loss = model_and_loss("per_token", DENSE, f"size.num_layers={layers}")
        loss = divided(model, loss, meshes)
        with CollectiveCounter() as counter:
            backward(model, loss, micro_batches()[:1], 1.0)
        counts.append(counter.calls)
    return dict(counts[1] - counts[0])


@torch.no_grad()
def prompt(meshes: Meshes) -> float:
    """Hidden states with a cache, as in generation, against those without one on one process."""
    alone, loss = model_and_loss("per_token", DENSE)
    shared, _ = model_and_loss("per_token", DENSE)
    divided(shared, loss, meshes)
    shard(shared, meshes)
    batch = collate([[image_example(1)]], pad_id=PAD_ID, merge_size=2)
    cache = shared.decoder.new_cache(1, 2 * batch.input_ids.numel())
    found = shared(batch, cache=cache).hidden
    undivided = float((found - alone(batch).hidden).abs().max())
    whole, _ = model_and_loss("per_token", DENSE)
    divided(whole, loss, meshes)
    whole(batch)  # a divided pass before does not matter
    answers = [list(generate(m, batch, max_new_tokens=5, stop_ids=[])) for m in (alone, whole)]
    assert answers[0] == answers[1]
    return undivided


@pytest.mark.distributed
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_that_share_tokens_equal_one_process(world, tmp_path):
    target = "tests.training.parallel.test_context:compare"
    for done in run_on_ranks(target, world, tmp_path):
        assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    if world == 2:
        # forward and backward: a gather and a scatter; twice two exchanges
        calls = found.pop("all_gather calls")
        assert calls == {"_allgather_base_": 1, "_reduce_scatter_base_": 1}
        assert found.pop("ulysses calls") == {"alltoall_base_": 4}
    logs = {key: found.pop(key) for key in list(found) if key.endswith("trainer")}
    print(json.dumps({k: max(v for n, v in found.items() if k in n) for k in KINDS}))
    for name, error in found.items():
        # measured: losses 1.3e-7, scores and log 1.4e-7 of themselves, gradients 1.6e-7, weights 2.4e-7
        assert error < 2e-6, (name, error)
    for number in range(len(logs)):
        loss, weights = torch.load(tmp_path / f"{number}.pt")
        expected, state = fitted("auto", 1, loss)
        difference = max(float((weights[name] - state[name]).abs().max()) for name in state)
        print(number, loss, difference)
        assert difference < 2e-6  # measured 1.2e-7
        numbers = logs[f"{number} trainer"]
        assert "val/held_out/answer_nll" in numbers
        for key, value in numbers.items():
            assert value == pytest.approx(expected[key], rel=1e-5, abs=1e-6, nan_ok=True), key


KINDS = ("loss", "gradient", "weights", "score", "log")


@pytest.mark.parametrize(
    ("device", "dtype", "back_end"),
    [
        ("cpu", torch.float32, SDPAAttention),
        pytest.param("cuda", torch.bfloat16, VarlenAttention, marks=pytest.mark.gpu),
    ],
)
@pytest.mark.parametrize("ranks", [2, 3])
def test_shares_of_attention_make_up_the_whole(ranks, device, dtype, back_end):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    torch.manual_seed(0)
    attention: Attention = back_end()
    segments = Segments.from_lengths([5, 19, 1, 7, 16]).to(device)
    tokens = segments.num_tokens
    query = torch.randn(tokens, 4, 16, device=device, dtype=dtype)
    keys = torch.randn(2, tokens, 2, 16, device=device, dtype=dtype)
    expected = attention(query, *keys, segments=segments, causal=True)
    of_ranks = [own_chunks(keys, 1, rank, ranks) for rank in range(ranks)]
    gathered = torch.stack(of_ranks).unflatten(2, (2, -1))
    for rank in range(ranks):
        plan = KeyPlan.of(segments, rank, ranks)
        seen = plan.choose(gathered)
        found = attention(
            own_chunks(query, 0, rank, ranks), *seen,
            segments=plan.segments, key_segments=plan.key_segments, causal=True,
        )  # fmt: skip
        tolerance = 1e-6 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(
            found, own_chunks(expected, 0, rank, ranks), rtol=0, atol=tolerance
        )
        counted = torch.zeros_like(gathered)
        plan.place(torch.ones_like(seen), counted)
        assert int(counted[:, 0, :, :, 0, 0].sum()) == plan.key_segments.num_tokens


def test_ranks_have_equally_much_work():
    plans = [KeyPlan.of(Segments.from_lengths([4096]), rank, 4) for rank in range(4)]
    work = [
        sum(
            q * (k - q / 2) for q, k in zip(p.segments.lengths, p.key_segments.lengths, strict=True)
        )
        for p in plans
    ]
    assert len(set(work)) == 1


def test_places_are_those_of_the_cut():
    line = torch.arange(24)
    for rank in range(3):
        places = OwnPlaces(rank, 3)
        index, is_own = places.find(line, 24)
        own = places.cut(line, 0)
        assert torch.equal(own[index[is_own]], line[is_own])
        assert int(is_own.sum()) == 8
        assert int(index.max()) < 8


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 1), (3, 2)])
def test_heads_that_do_not_divide_are_refused(heads, kv_heads, monkeypatch):
    monkeypatch.setattr(dist, "get_rank", lambda group: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda group: 2)
    ulysses = UlyssesAttention(SDPAAttention(), None)
    with pytest.raises(ConfigError, match=r"parallel.context=2 must divide num_(kv_)?heads=[13]"):
        ulysses.check(heads, kv_heads)
    with pytest.raises(ValueError, match="3 tokens are no share of 8"):
        ulysses(*torch.zeros(3, 3, 2, 4), segments=Segments.from_lengths([8]), causal=True)


def test_what_cannot_share_tokens_is_refused():
    model, _ = model_and_loss("per_token", DENSE)
    with pytest.raises(ConfigError, match=r"parallel.pipeline=2 with parallel.context=2"):
        Layout(context=2, pipeline=2)
    meshes: Any = SimpleNamespace(layout=Layout(context=2))
    model.fusion = nn.Identity()
    with pytest.raises(ConfigError, match="fusion Identity cannot be divided"):
        apply_context_parallel(model, meshes)
    with pytest.raises(ConfigError, match=r"Identity knows no tokens divided .*context=2"):
        context_parallel(nn.Identity(), meshes)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_the_way_to_attend_is_a_choice_of_the_config(name):
    config = compose_config(
        "model=qwen3vl_tiny", "run_dir=none", "parallel=cp", f"parallel/context_attention={name}"
    )
    layout = build(config.parallel).for_ranks(4)
    assert (layout.context, layout.shard) == (2, 2)
    assert ATTENTIONS[name].__name__ in repr(layout.context_attention)
