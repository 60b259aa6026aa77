"""The manifest names what was called, not what was configured, and holds no secrets."""

from __future__ import annotations

import json
import logging
import subprocess

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from tests.samples import PAD_ID, image_example, text_example
from vlmkit.attention.auto import AutoAttention
from vlmkit.attention.sdpa import SDPAAttention
from vlmkit.batch import StepBatch
from vlmkit.build import build_model
from vlmkit.data.collate import collate
from vlmkit.errors import ConfigError
from vlmkit.losses.cross_entropy import CrossEntropy
from vlmkit.losses.weighting import TokenWeighting
from vlmkit.training.meters.calls import CallCounter, check_asked_for, held
from vlmkit.training.meters.environment import git_state, variables, without_secrets
from vlmkit.training.sections import Sections
from vlmkit.training.what_ran import WhatRan


class Module(L.LightningModule):
    def __init__(self, model) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model, self.loss, self.sections = model, CrossEntropy(TokenWeighting(0.0)), Sections()

    def training_step(self, batch, batch_idx):
        micro = batch.micro_batches[0]
        hidden = self.model(micro).hidden
        self.manual_backward(self.loss(hidden, self.model.decoder.head_weight, micro).numerator)
        self.optimizers().step()
        logging.getLogger("vlmkit.somewhere").warning("fell back to the slow path")

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-4, fused=True)


def fit(folder, size="qwen3vl_tiny_moe", steps=3, **options) -> dict:
    row = [text_example(0), image_example(1)]
    micro = collate([row], pad_id=PAD_ID, merge_size=2)
    batch = StepBatch(step=0, micro_batches=(micro,), tokens={}, samples={}, rows_hash=77)
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[WhatRan(folder / "what_ran.json", **options)],
    )  # fmt: skip
    loader = DataLoader([batch] * steps, batch_size=None, collate_fn=lambda x: x)
    trainer.fit(Module(build_model(f"model={size}")), loader)
    return json.loads((folder / "what_ran.json").read_text())


def test_a_run_names_what_it_called(tmp_path):
    before = SDPAAttention.__call__
    facts = fit(tmp_path)
    ran = facts["ran"]
    # four encoder blocks and two layers, in the first step only; `auto` names what it chose
    assert ran["attention"] == {"AutoAttention": {"VarlenAttention": 0, "SDPAAttention": 6}}
    assert ran["loss"]["CrossEntropy"] == 1
    assert all(sum(kernel.values()) == 1 for kernel in ran["loss_kernel"].values())
    assert (
        ran["kernels"]["aten::_grouped_mm"] >= 4
    )  # two layers, gate_up and down; and their backward
    assert any("scaled_dot_product" in name for name in ran["kernels"])
    assert any("fused_adamw" in name for name in ran["kernels"])
    assert ran["optimizers"] == [
        {"class": "AdamW", "groups": 1, "fused": True, "foreach": None, "capturable": False}
    ]
    assert ran["precision"] == {"trainer": "32-true", "autocast": None, "parameters": ["float32"]}
    assert ran["warnings"] == ["vlmkit.somewhere: fell back to the slow path"]
    assert ran["compile"]["graphs"] == 0
    assert facts["status"] == "finished"
    assert facts["steps"] == 3
    assert facts["data"]["first_step_rows_hash"] == 77
    assert (
        facts["packages"]["torch"] == torch.__version__.partition("+")[0]
        or facts["packages"]["torch"]
    )
    assert {"lightning", "timm", "vlmkit"} <= set(facts["packages"])
    assert facts["ranks"]["world_size"] == 1
    assert SDPAAttention.__call__ is before, "nothing stays watched"


def test_a_switch_that_changes_nothing_ends_the_run(tmp_path):
    with pytest.raises(
        ConfigError, match=r"loss=fast was asked for.*never called FastLoss.*SDPAAttention 6"
    ):
        fit(tmp_path, asked_for={"loss=fast": ["FastLoss"]})
    status = json.loads((tmp_path / "what_ran.json").read_text())["status"]
    assert status.startswith("failed: ConfigError: loss=fast")


def test_check_asked_for():
    check_asked_for({"attention=auto": ["VarlenAttention", "SDPAAttention"]}, {"SDPAAttention": 1})
    with pytest.raises(ConfigError, match=r"attention=flash.*nothing that is counted"):
        check_asked_for({"attention=flash": ["FlashAttention"]}, {"FlashAttention": 0})


def test_calls_in_compiled_graphs_are_counted_when_traced(tiny_batch):
    model = build_model("model=qwen3vl_tiny")
    choices = held(model, "attention")["AutoAttention"]
    assert [cls.__name__ for cls in choices] == ["VarlenAttention", "SDPAAttention"]

    def attend(x):
        return back_end(x, x, x, segments=tiny_batch.segments, causal=True)

    back_end = SDPAAttention()
    x = torch.randn(tiny_batch.segments.num_tokens, 2, 8)
    compiled = torch.compile(attend, backend="eager", fullgraph=True)
    with CallCounter([], choices) as counter:
        inside = compiled(x)
        compiled(x)
    assert counter.calls == {"SDPAAttention": 1}
    assert torch.equal(inside, attend(x))


def test_wrapped_parts_are_found():
    class Wrapper:
        def __init__(self, attention) -> None:
            self.attention = attention

    module = torch.nn.Module()
    module.attention = Wrapper(Wrapper(AutoAttention()))
    assert list(held(module, "attention")) == ["AutoAttention"]


def test_secrets_stay_out():
    environ = {
        "OMP_NUM_THREADS": "2",
        "NCCL_DEBUG": "INFO",
        "CUDA_VISIBLE_DEVICES": "GPU-1b2c3d4e-0000-1111-2222-333344445555",
        "HF_TOKEN": "hf_abcdefghijklmnopqrstuvwxyz",
        "TORCH_HUB_TOKEN": "short",
        "TORCH_PROXY": "http://me:word@proxy:80",
        "HOME": "/home/me",
    }
    kept = variables(environ)
    assert kept["OMP_NUM_THREADS"] == "2"
    assert kept["NCCL_DEBUG"] == "INFO"
    assert kept["CUDA_VISIBLE_DEVICES"].startswith("GPU-")
    assert "HOME" not in kept
    assert "HF_TOKEN" not in kept
    for secret in ("hf_", "short", "word"):
        assert secret not in json.dumps(kept)
    assert without_secrets("data.num_workers=4") == "data.num_workers=4"
    assert without_secrets("planner.row_tokens=512") == "planner.row_tokens=512"
    assert (
        without_secrets("checkpoint=https://me:pw@host/x")
        == "checkpoint=(dropped: looks like a secret)"
    )
    assert "abc" not in without_secrets("logger.wandb.api_key=abc")


def git(folder, *arguments):
    names = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *names, *arguments], check=True, capture_output=True)


def test_git_state_tells_what_changed(tmp_path):
    (tmp_path / "plain").mkdir()
    facts, patch = git_state(tmp_path / "plain")
    assert facts["commit"] is None
    assert "no git" in facts["note"]
    assert patch == b""

    tree = tmp_path / "tree"
    tree.mkdir()
    git(tree, "init", "-q")
    (tree / "a.py").write_text("a = 1\n")
    git(tree, "add", ".")
    git(tree, "commit", "-qm", "first")
    clean, patch = git_state(tree)
    assert len(clean["commit"]) == 40
    assert not clean["dirty"]
    assert patch == b""

    (tree / "a.py").write_text("a = 2\n")
    (tree / "new.py").write_text("b = 1\n")
    dirty, patch = git_state(tree)
    assert dirty["dirty"]
    assert list(dirty["unknown_files"]) == ["new.py"]
    assert b"+a = 2" in patch
    git(tree, "checkout", "-q", "a.py")
    (tree / "change.patch").write_bytes(patch)
    git(tree, "apply", "change.patch")
    assert (tree / "a.py").read_text() == "a = 2\n"
