"""`python -m vlmkit.parity`, as a user calls it."""

from __future__ import annotations

import json
import math
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.checkpoint.toy import edit_tensors, save_toy
from tests.commands import run_command
from vlmkit import parity
from vlmkit.checkpoint.compare import difference

command = partial(run_command, parity.main)


def test_the_table_names_every_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_toy(tmp_path / "toy", moe=True)
    assert command(f"checkpoint={tmp_path / 'toy'}") == 0
    shown = capsys.readouterr().out
    for part in (
        "patch embedding",
        *(f"vision block {i}" for i in range(4)),
        "merger",
        *(f"DeepStack merger {i}" for i in range(3)),
        *(f"decoder layer {i}" for i in range(4)),
        "final norm",
        "logits",
        "model.visual.patch_embed.proj.weight",
        "model.language_model.layers.1.mlp.experts.gate_up_proj",
        "lm_head.weight",
    ):
        assert f"  {part} " in shown, part
    assert "in float32, 1e-04 allowed: passed" in shown
    assert {path.name for path in tmp_path.iterdir()} == {"toy"}


def test_an_error_above_the_tolerance_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reference reads a chunked section as interleaved, so the two must differ."""
    save_toy(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["rope_parameters"]["mrope_interleaved"] = False
    path.write_text(json.dumps(config))
    assert command(f"checkpoint={tmp_path}") == 1
    assert "FAILED" in capsys.readouterr().out


def test_a_nan_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first case, text alone, does not meet it."""
    save_toy(tmp_path)
    bias = "model.visual.merger.linear_fc2.bias"
    edit_tensors(tmp_path, lambda tensors: tensors[bias].fill_(math.nan))
    assert command(f"checkpoint={tmp_path}") == 1
    assert "worst error inf" in capsys.readouterr().out


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_counts_as_infinite(value: float) -> None:
    fine, spoilt = torch.ones(3), torch.tensor([1.0, value, 1.0])
    for pair in ((fine, spoilt), (spoilt, fine), (spoilt, spoilt)):
        found = difference(*pair)
        assert found.worst == found.relative == math.inf
    zero = difference(torch.zeros(3), torch.tensor([0.0, 0.5, 0.0]))
    assert zero.worst == zero.relative == 0.5


def test_what_is_missing_is_said(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert command() == 2
    assert "checkpoint=<folder or hub repository> is needed" in capsys.readouterr().err
    assert command(f"checkpoint={tmp_path / 'absent'}") == 2
    assert "there is no such folder" in capsys.readouterr().err
    assert command("chekpoint=x") == 2
    assert "Did you mean checkpoint" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert command(f"checkpoint={tmp_path}") == 2
    assert "pip install 'transformers>=5'" in capsys.readouterr().err
