"""The GPU benchmark runs end to end at toy size, and a case that goes wrong does not end it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from benchmarks.gpu import Runner, affordable, main
from benchmarks.on_gpu.bench import Bench
from benchmarks.on_gpu.canvases import PUBLISHED_PIXELS, EmojiCanvases, packs
from benchmarks.on_gpu.cases import CASES
from benchmarks.on_gpu.scale import TOY

from vlmkit.build import build, compose_config
from vlmkit.models.hf_batch import batch_from_hf


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Runs the command here, so that one process imports everything for all tests."""

    def command(*arguments: str) -> tuple[int, dict, str]:
        monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path), *arguments])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(str(ended.code))
        last = capfd.readouterr().out.splitlines()[-1]
        return code, json.loads(last), (tmp_path / "gpu.md").read_text()

    return command


def test_a_toy_run_goes_through_cases_and_writes_its_report(tmp_path, run):
    """Those that share nothing; the rest is in the slow test."""
    pytest.importorskip("transformers")
    names = ("lora_8b", "attention", "losses")
    code, found, page = run("--toy", *(w for name in names for w in ("--case", name)))
    assert code == 0, found
    assert {name: case["status"] for name, case in found.items()} == dict.fromkeys(names, "done")
    assert set(found["lora_8b"]["speed"]) == {"transformers, sdpa"}
    predicted, measured = (found["lora_8b"]["memory"][k] for k in ("predicted", "measured"))
    assert predicted == pytest.approx(measured, rel=0.1)  # measured: 1.4 %
    numbers = json.loads((tmp_path / "gpu.json").read_text())
    whats = [row["what"] for row in numbers["cases"]["lora_8b"]["rows"]]
    assert whats == ["vlmkit", "vlmkit, compile=blocks", "transformers, sdpa"]
    for words in ("A toy run", "| vlmkit, compile=blocks |", "needs CUDA", "left out: decoder"):
        assert words in page


@pytest.mark.slow
def test_a_toy_run_of_all_cases(run):
    pytest.importorskip("transformers")
    code, found, _ = run("--toy", "--minutes", "30")
    assert code == 0
    assert {name: case["status"] for name, case in found.items()} == dict.fromkeys(CASES, "done")


@pytest.mark.gpu
@pytest.mark.slow
def test_on_a_gpu(run):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    code, found, _ = run("--case", "ceilings", "--case", "correctness", "--minutes", "4")
    assert code == 0, found


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_a_case_that_cannot_start_is_reported(run):
    code, found, page = run("--device", "cuda", "--case", "ceilings")
    assert code == 1
    assert found["ceilings"]["status"] == "no CUDA in this process"
    assert "RuntimeError" in page or "AssertionError" in page


def test_a_case_that_takes_too_long_is_stopped():
    found = Runner("cpu", toy=True, threads=1).run("correctness", -14.9)
    assert found["status"].startswith("stopped after")


def test_what_goes_wrong_inside_a_case_is_reported_and_the_rest_goes_on(tmp_path):
    bench = Bench(torch.device("cpu"), TOY, tmp_path / "found.json", 10.0)
    with bench.attempt("one"):
        raise torch.OutOfMemoryError("tried to allocate 80 GiB\nand more")
    with bench.attempt("another's", is_ours=False):
        raise ValueError("cannot")
    bench.row(what="two", value=1.0)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["errors"][0]["error"].startswith("OutOfMemoryError: tried to allocate 80 GiB (")
    assert found["notes"][0].startswith("could not be run: another's: ValueError: cannot (")
    assert found["rows"] == [{"what": "two", "value": 1.0}]


def test_the_last_cases_are_left_out_where_time_is_short():
    seconds = {"a": 10.0, "b": 20.0, "c": 5.0}
    assert affordable(list(seconds), seconds, 600) == ["a", "b", "c"]
    assert affordable(list(seconds), seconds, 29) == ["a"]
    assert affordable(list(seconds), seconds, 1) == ["a"]


def test_what_is_imported_before_forking_does_not_start_cuda():
    """A forked process cannot use CUDA once its parent has started it."""
    code = """
import torch
called = []
for name in ("_cuda_getDeviceCount", "_cuda_init"):
    if hasattr(torch._C, name):
        setattr(torch._C, name, lambda *_, name=name: called.append(name) or 0)
import benchmarks.on_gpu.preload
assert not called, called
assert not torch.cuda.is_initialized()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200)


def test_padded_rows_are_the_samples_of_the_pack():
    config = compose_config("model=qwen3vl_tiny", *PUBLISHED_PIXELS)
    (pack,) = packs(config, 512, 1, EmojiCanvases((2, 4), 2))
    assert min(len(e.patches) for e in pack.examples) >= 4 * 64  # pictures are not made small
    inputs = pack.padded()
    special = build(config.processor).special_tokens
    again = batch_from_hf(inputs, special, merge_size=2)
    real = inputs["attention_mask"].bool()
    assert torch.equal(again.input_ids[real], pack.batch.input_ids[0])
    assert torch.equal(again.position_ids[:, real], pack.batch.position_ids[:, 0])
    assert torch.equal(again.labels[real], pack.batch.labels[0])
    assert torch.equal(again.vision.patches, pack.batch.vision.patches)
    assert again.vision.grids == pack.batch.vision.grids
