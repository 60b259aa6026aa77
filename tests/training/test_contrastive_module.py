"""A contrastive step does not depend on how it is cut, and the encoder it trains goes into the VLM."""

from __future__ import annotations

import os
import socket
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import multiprocessing
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from tests.conftest import spread
from tests.samples import (
    PAD_ID,
    example,
    image_example,
    picture,
    text,
    text_example,
    two_images_example,
    video_example,
)
from vlmkit.batch import StepBatch
from vlmkit.build import build_model, compose_config
from vlmkit.data.collate import collate
from vlmkit.language.captions import OwnTokens
from vlmkit.losses.sigmoid import PairwiseSigmoid
from vlmkit.models.image_text import ImageTextModel
from vlmkit.models.pairs import pair
from vlmkit.training.contrastive_module import ContrastiveModule
from vlmkit.training.policy import TrainingPolicy
from vlmkit.training.update import Update

TINY = ("model=qwen3vl_tiny", "stage=s_vision", "text_encoder=tiny", "run_dir=none")
TWIN = example([picture(2, 2), text(61, 3, scored=True)], [(1, 4, 4)], seed=9)  # as sample 1's
EXAMPLES = [
    text_example(0),
    image_example(1),
    two_images_example(2),
    video_example(3),
    image_example(4, 1, 4, answer=9),
    TWIN,
    image_example(5, answer=7),
    image_example(6, 3, 2),
]
NUM_PAIRS = 6


def constant(optimizer, total_steps):
    return LambdaLR(optimizer, lambda _: 1.0)


def new_model() -> ImageTextModel:
    torch.manual_seed(0)
    model = spread(build_model(config=compose_config(*TINY)))
    model.temperature.reset_parameters()
    with torch.no_grad():
        model.temperature.bias.fill_(-3.0)  # at -10 negatives of an untrained model weigh nothing
    return model


def new_module(model, optimizer=torch.optim.SGD, lr=1.0, **settings) -> ContrastiveModule:
    policy = TrainingPolicy(dict.fromkeys(model.components, lr))
    update = Update(policy, partial(optimizer, lr=lr), constant, clip_norm=1e9)
    return ContrastiveModule(model, update, PairwiseSigmoid(), OwnTokens(), **settings)


def batch_of(parts, examples=EXAMPLES):
    return collate(
        [[examples[i] for i in part] for part in parts],
        pad_id=PAD_ID, merge_size=2, sources=["sample 3", "sample 4"],
    )  # fmt: skip


def step_of(cut) -> StepBatch:
    batches = tuple(batch_of([part]) for part in cut)
    return StepBatch(step=0, micro_batches=batches, tokens={}, samples={})


def fit(module, step, max_steps=1, **options) -> L.Trainer:
    trainer = L.Trainer(
        max_steps=max_steps, max_epochs=-1, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        **options,
    )  # fmt: skip
    trainer.fit(module, DataLoader([step], batch_size=None, collate_fn=lambda x: x))
    return trainer


def reference() -> tuple[ImageTextModel, float]:
    """One step of gradient descent on the loss as the paper writes it, through autograd."""
    model = new_model()
    pairs = pair(batch_of([range(8)]), OwnTokens(), model.blank())
    output = model(pairs)
    keys = pairs.caption_keys
    logits = output.images @ output.texts.T * model.temperature.log_scale.exp()
    label = 2 * torch.eye(NUM_PAIRS) - 1
    counted = (keys[:, None] != keys) | torch.eye(NUM_PAIRS).bool()
    nll = -F.logsigmoid(label * (logits + model.temperature.bias))
    loss = nll[counted].sum() / NUM_PAIRS
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= parameter.grad
    return model, float(loss.detach())


def worst(model, other) -> float:
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


CUTS = {
    "one of eight": [range(8)],
    "two of four": [range(4), range(4, 8)],
    "eight of one": [[i] for i in range(8)],
}


@pytest.mark.parametrize("name", CUTS)
def test_micro_batches_do_not_change_the_step(name):
    expected, loss = reference()
    module = new_module(new_model(), source_names=["sample 3", "sample 4"])
    trainer = fit(module, step_of(CUTS[name]))
    assert worst(module.model, expected) < 5e-6  # measured 5.4e-7 on gradients up to 2.1
    logged = trainer.callback_metrics
    assert float(logged["train/loss"]) == pytest.approx(loss, rel=1e-6)
    assert [float(logged[f"train/{key}"]) for key in ("pairs", "unpaired", "cut_captions")] == [
        NUM_PAIRS, 2, 0
    ]  # fmt: skip
    assert float(logged["train/pairs/sample 3"]) == 1


def rank_main(rank: int, port: int, folder: str) -> None:
    """One of two ranks; pairs and micro-batches are unevenly spread."""
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
        "NODE_RANK": "0", "LOCAL_RANK": str(rank),
    }  # fmt: skip
    cut = [[[0, 1, 2], [3, 4], [5]], [[6, 7]]][rank]
    module = new_module(new_model())
    trainer = fit(module, step_of(cut), strategy="ddp", devices=2, use_distributed_sampler=False)
    loss = trainer.callback_metrics["train/loss"]
    torch.save({"model": module.model.state_dict(), "loss": loss}, Path(folder) / f"{rank}.pt")


@pytest.mark.distributed
def test_ranks_do_not_change_the_step(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(rank_main, (port, str(tmp_path)), nprocs=2)
    expected, loss = reference()
    for rank in range(2):
        saved = torch.load(tmp_path / f"{rank}.pt")
        model = new_model()
        model.load_state_dict(saved["model"])
        assert worst(model, expected) < 5e-6  # measured 4.2e-7
        assert float(saved["loss"]) == pytest.approx(loss, rel=1e-6)


def test_a_step_without_pairs_changes_nothing():
    module = new_module(new_model())
    trainer = fit(module, step_of([[0], [2]]))
    assert worst(module.model, new_model()) == 0
    assert float(trainer.callback_metrics["train/loss"]) == 0


def test_the_trained_encoder_is_the_one_of_the_vlm():
    model = new_model()
    before = {name: value.clone() for name, value in model.vision.state_dict().items()}
    fit(new_module(model, torch.optim.AdamW, lr=1e-2), step_of(CUTS["two of four"]), max_steps=3)
    weights = {k: v for k, v in model.state_dict().items() if k.startswith("vision.")}
    vlm = build_model("model=qwen3vl_tiny", "run_dir=none")
    assert weights.keys() == {name for name in vlm.state_dict() if name.startswith("vision.")}
    missing = vlm.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys
    for name, value in vlm.vision.state_dict().items():
        assert torch.equal(value, model.vision.state_dict()[name]), name
        assert not torch.equal(value, before[name]), name


def test_a_frozen_component_stays_as_it_is():
    model = new_model()
    update = Update(
        TrainingPolicy({"vision": 1.0, "pool": 1.0, "text": None, "temperature": None}),
        partial(torch.optim.SGD, lr=1.0), constant,
    )  # fmt: skip
    fit(
        ContrastiveModule(model, update, PairwiseSigmoid(), OwnTokens()),
        step_of(CUTS["two of four"]),
    )
    untouched = new_model().state_dict()
    for name, value in model.state_dict().items():
        frozen = name.startswith(("text.", "temperature."))
        assert torch.equal(value, untouched[name]) == frozen, name


def test_bfloat16_autocast_trains():
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        trainer = fit(new_module(new_model()), step_of(CUTS["two of four"]), precision=precision)
        losses.append(float(trainer.callback_metrics["train/loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)  # measured 1.2e-4


def test_validation_scores_retrieval():
    module = new_module(new_model(), validation_names=["held_out"])
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, inference_mode=False,
    )  # fmt: skip
    steps = [step_of([range(4), range(4, 6)]), step_of([[6, 7]])]
    trainer.validate(
        module, DataLoader(steps, batch_size=None, collate_fn=lambda x: x), verbose=False
    )
    pairs = pair(batch_of([range(8)]), OwnTokens(), module.model.blank())
    with torch.no_grad():
        output = module.model(pairs)
    cosines, keys = output.images @ output.texts.T, pairs.caption_keys
    logged = trainer.callback_metrics
    for name, scores in (("image_to_text", cosines), ("text_to_image", cosines.T)):
        expected = (keys[scores.argmax(1)] == keys).float().mean()
        assert float(logged[f"val/held_out/{name}_recall_at_1"]) == pytest.approx(float(expected))
    assert float(logged["val/held_out/chance"]) == pytest.approx((4 * 1 + 2 * 2) / 36)
