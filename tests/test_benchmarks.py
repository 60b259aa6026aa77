"""What the benchmark compares is the same work, and its stages are still there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from benchmarks.baseline import PaddedBatches, published_processor
from benchmarks.photos import PhotoRows, write_data
from benchmarks.stages import STAGES, stage_shares

from vlmkit.build import build, compose_config
from vlmkit.data.datamodule import Rows
from vlmkit.data.order.mixture import Mixture, Weighted
from vlmkit.data.order.samples import Samples
from vlmkit.data.order.steps import FixedSamples


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> PhotoRows:
    folder = tmp_path_factory.mktemp("photos")
    return PhotoRows(write_data(folder, 24, seed=3, longest_side=400))


@pytest.fixture(scope="module")
def config():
    video = ("processor.video.fps=2", "processor.video.max_pixels=4194304")
    return compose_config("model=qwen3vl_tiny", *video)


def test_both_ways_make_the_same_tokens_and_patches(source, config):
    """Of everything but videos, whose frames the two count from different moments."""
    pytest.importorskip("transformers")
    ours = build(config.processor)
    theirs = PaddedBatches(source, published_processor(ours), fps=2.0, batch_size=1)
    compared = 0
    for i in range(len(source)):
        example = ours(source[i])
        if any(grid[0] > 1 for grid in example.grids):
            continue
        batch = theirs[i]
        assert batch["input_ids"].shape == (1, example.num_tokens)
        if example.grids:
            assert torch.equal(batch["pixel_values"], example.patches)
        compared += 1
    assert compared > 15
    padded = PaddedBatches(source, theirs.processor, fps=2.0, batch_size=8)
    assert len(padded) == 3
    assert len(padded[2]["input_ids"]) == 8


def test_stages_take_all_of_the_time(source, config):
    mixture = Mixture({"photos": Weighted(source=source)})
    samples = Samples(mixture, build(config.processor), Rows(row_tokens=4096).limits)
    planner = FixedSamples(8, build(config.work))
    shares, speed = stage_shares(samples, planner, Rows(row_tokens=4096), num_steps=2)
    assert set(shares) == {*STAGES, "between processes"}
    assert sum(shares.values()) == pytest.approx(1)
    assert np.isfinite(speed)
    for stage in ("read files, decode", "resize", "patches", "tokenise", "collate"):
        assert shares[stage] > 0
