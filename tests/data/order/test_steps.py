"""The order of a run: the same global batches on any number of ranks and workers, and after a kill."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.toys import WORK, Numbered
from vlmkit.batch import StepBatch
from vlmkit.build import build, compose_config
from vlmkit.data.datamodule import VLMDataModule
from vlmkit.data.order.mixture import Mixture, Weighted
from vlmkit.data.order.steps import FixedRows, FixedSamples
from vlmkit.data.processor import Processor
from vlmkit.data.rows import Rows
from vlmkit.errors import CheckpointError, ConfigError

PLANNERS = {
    "samples": lambda: FixedSamples(24, WORK),
    "rows": lambda: FixedRows(6, WORK, slack=0.5),
}
BROKEN = frozenset({3, 17, 29, 30, 31, 44})


@pytest.fixture(scope="module")
def processor() -> Processor:
    overrides = ["processor.image.min_pixels=1024", "processor.image.max_pixels=16384"]
    return build(compose_config("model=qwen3vl_tiny", *overrides).processor)


def data_module(processor, planner: str, workers: int = 0, broken=BROKEN, **changed):
    settings = {
        "mixture": Mixture(
            {
                "numbers": Weighted(source=Numbered(61, broken), weight=2),
                "more": Weighted(source=Numbered(200)),
            },
            seed=5,
        ),
        "rows": Rows(row_tokens=160, rows_per_micro_batch=2),
        **changed,
    }
    module = VLMDataModule(
        validation={},
        processor=processor,
        planner=PLANNERS[planner](),
        work=WORK,
        num_steps=60,
        num_workers=workers,
        **settings,
    )
    module.skips.min_seen = 10**9
    return module


def contents(batch: StepBatch) -> list[tuple]:
    """What each sample of a step holds, bit for bit, in an order of its own."""
    found = []
    for micro in batch.micro_batches:
        patches, at = (micro.vision.patches, 0) if micro.vision else (torch.zeros(0), 0)
        visual = torch.zeros(micro.input_ids.numel(), dtype=torch.bool)
        visual[micro.visual_index] = True
        for sample in range(micro.num_samples):
            mine = micro.sample_ids == sample
            count = 4 * int(visual[mine.flatten()].sum())
            found.append(
                (
                    micro.input_ids[mine].tolist(),
                    micro.labels[mine].tolist(),
                    micro.position_ids[:, mine].tolist(),
                    int(micro.source_ids[sample]),
                    patches[at : at + count].numpy().tobytes(),
                )
            )
            at += count
    return sorted(found)


def raw(batch: StepBatch) -> bytes:
    """Everything in a step, in its order."""
    return (
        pickle.dumps(
            [
                (
                    m.input_ids.tolist(),
                    m.labels.tolist(),
                    m.position_ids.tolist(),
                    m.segments.lengths,
                )
                + ((m.vision.patches.numpy().tobytes(), m.vision.grids) if m.vision else ())
                for m in batch.micro_batches
            ]
        )
        + json.dumps([batch.step, [item.index for item in batch.skipped]]).encode()
    )


def steps(module: VLMDataModule, first: int, count: int) -> list[StepBatch]:
    loader = iter(module.train_dataloader())
    taken = [next(loader) for _ in range(count)]
    assert [batch.step for batch in taken] == list(range(first, first + count))
    return taken


@pytest.mark.parametrize("planner", PLANNERS)
def test_the_next_fifty_steps_after_a_resume_are_byte_identical(processor, planner):
    whole = [raw(batch) for batch in steps(data_module(processor, planner), 0, 57)]
    for stop, workers in ((1, 0), (7, 2)):
        before = data_module(processor, planner, workers=workers)
        steps(before, 0, stop)
        state = json.loads(json.dumps(before.state_dict_before(stop)))  # it goes through a file
        after = data_module(processor, planner, workers=2 - workers)
        after.load_state_dict(state)
        resumed = [raw(batch) for batch in steps(after, stop, 50)]
        assert resumed == whole[stop : stop + 50]


@pytest.mark.parametrize("planner", PLANNERS)
def test_global_batches_do_not_depend_on_ranks(processor, planner):
    """One rank, then three, then two: the same samples in every step, each on one rank."""
    reference = data_module(processor, planner)
    whole = steps(reference, 0, 9)
    state, at = reference.planner.start(), 0
    for world_size, count in ((1, 3), (3, 3), (2, 3)):
        module = data_module(processor, planner)
        tickets = module.planner.tickets(module.samples, state)
        datasets = [module.training_steps(rank, world_size) for rank in range(world_size)]
        for step in range(at, at + count):
            ticket = next(tickets)
            assert ticket.step == step
            ranks = [dataset[ticket] for dataset in datasets]
            assert sorted(item for batch in ranks for item in contents(batch)) == contents(
                whole[step]
            )
            reported = sorted(item.index for batch in ranks for item in batch.skipped)
            assert reported == sorted(item.index for item in whole[step].skipped)
            state = ticket.after
        at += count


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.sampled_from(sorted(PLANNERS)), st.integers(1, 5))
def test_every_sample_of_the_stream_comes_up_once(count, planner, rows):
    """In the order of the mixture, but for what waits in the buffer."""
    module = data_module(PROCESSOR[0], planner)
    module.planner = {
        "samples": FixedSamples(5 * rows, WORK),
        "rows": FixedRows(rows, WORK, slack=0.3),
    }[planner]
    seen: list[int] = []
    last = {}
    for _, ticket in zip(
        range(min(count, 12)),
        module.planner.tickets(module.samples, module.planner.start()),
        strict=False,
    ):
        planned = module.planner.rows(module.samples, ticket)
        seen += [index for row in planned.rows for index in row]
        seen += [item.index for item in planned.skipped]
        last = ticket.after
    seen += last.get("waiting", [])
    assert sorted(seen) == list(range(len(seen)))


PROCESSOR: list[Processor] = []


@pytest.fixture(scope="module", autouse=True)
def _processor_for_properties(processor):
    PROCESSOR[:] = [processor]


@pytest.mark.parametrize("planner", PLANNERS)
def test_resuming_opens_nothing_that_is_not_needed(processor, planner):
    """The state is small, and the records before it are not touched."""
    module = data_module(processor, planner)
    steps(module, 0, 40)
    state = module.state_dict_before(40)
    assert len(json.dumps(state)) < 3000
    early = data_module(processor, planner)
    assert abs(len(json.dumps(early.state_dict_before(0))) - len(json.dumps(state))) < 1500

    resumed = data_module(processor, planner)
    resumed.load_state_dict(state)
    steps(resumed, 40, 1)
    per_step = sum(len(p.source.opened) for p in resumed.mixture.parts.values())
    fresh = data_module(processor, planner)
    steps(fresh, 0, 1)
    assert per_step <= 2 * sum(len(p.source.opened) for p in fresh.mixture.parts.values())


def test_other_data_are_refused_with_what_differs(processor):
    state = data_module(processor, "rows").state_dict_before(0)
    other = Mixture({"numbers": Weighted(source=Numbered(62))}, seed=5)
    with pytest.raises(
        CheckpointError, match=r"parts.more was .*; parts.numbers.* was 61, now it is 62"
    ):
        data_module(processor, "rows", mixture=other).load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"limits\.tokens was 160, now it is 200"):
        data_module(processor, "rows", rows=Rows(row_tokens=200)).load_state_dict(state)
    with pytest.raises(
        CheckpointError, match=r"planner\.class was FixedRows, now it is FixedSamples"
    ):
        data_module(processor, "samples").load_state_dict(state)


def test_bad_records_are_skipped_and_mistakes_are_not(processor):
    module = data_module(processor, "samples")
    skipped = [item for batch in steps(module, 0, 6) for item in batch.skipped]
    assert {int(item.message.split()[1]) for item in skipped} <= BROKEN
    assert {(item.source, item.code) for item in skipped} == {("numbers", "bad_record")}
    wrong = Mixture({"wrong": Weighted(source=Numbered(9, BROKEN, KeyError))})
    with pytest.raises(KeyError, match="record 3 is broken"):
        steps(data_module(processor, "samples", mixture=wrong), 0, 6)


def test_a_step_of_bad_records_only_is_empty_padding(processor):
    bad = Mixture({"bad": Weighted(source=Numbered(9, frozenset(range(9))))})
    (batch,) = steps(data_module(processor, "samples", mixture=bad), 0, 1)
    assert len(batch.skipped) == 24
    (micro,) = batch.micro_batches
    assert (micro.num_samples, micro.num_tokens, len(micro.scored_index)) == (0, 0, 0)
    with pytest.raises(ConfigError, match=r"none of .* samples can be used; the last: record"):
        steps(data_module(processor, "rows", mixture=bad), 0, 1)


KILLED = """
import sys, json, torch
from pathlib import Path
from tests.data.order.test_steps import data_module, raw
from vlmkit.build import build, compose_config
folder, planner = Path(sys.argv[1]), sys.argv[2]
overrides = ["processor.image.min_pixels=1024", "processor.image.max_pixels=16384"]
module = data_module(build(compose_config("model=qwen3vl_tiny", *overrides).processor), planner, workers=2)
if (folder / "state.json").exists():
    module.load_state_dict(json.loads((folder / "state.json").read_text()))
for batch in module.train_dataloader():
    with (folder / "steps").open("ab") as file:
        file.write(json.dumps([batch.step, raw(batch).hex()]).encode() + b"\\n")
    state = json.dumps(module.state_dict_before(batch.step + 1))
    (folder / "part.json").write_text(state)
    (folder / "part.json").rename(folder / "state.json")
"""


def test_killed_at_any_moment_the_run_goes_on_where_it_was(processor, tmp_path: Path):
    """SIGKILL after a few steps, twice, with two loader workers."""
    planner = "rows"
    expected = [raw(batch).hex() for batch in steps(data_module(processor, planner), 0, 60)]
    for stop in (3, 9, None):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path), planner],
            env={**os.environ, "PYTHONPATH": ".", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        ) as child:
            while stop is not None and child.poll() is None:
                time.sleep(0.02)
                lines = tmp_path / "steps"
                if lines.exists() and lines.read_bytes().count(b"\n") >= stop:
                    os.killpg(child.pid, signal.SIGKILL)
                    break
            child.wait(timeout=120)
        whole, newline, _ = (tmp_path / "steps").read_bytes().rpartition(b"\n")
        (tmp_path / "steps").write_bytes(whole + newline)  # a kill may fall into a write
    seen = [json.loads(line) for line in (tmp_path / "steps").read_bytes().splitlines()]
    for step, content in seen:  # the step of the kill may stand there twice
        assert content == expected[step]
    assert {step for step, _ in seen} == set(range(60))
