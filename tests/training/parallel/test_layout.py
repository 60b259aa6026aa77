"""Sizes of the axes."""

from __future__ import annotations

import pytest

from vlmkit.build import build, compose_config, options_of
from vlmkit.errors import ConfigError
from vlmkit.training.parallel.launch import processes_for
from vlmkit.training.parallel.layout import Layout


@pytest.mark.parametrize("name", options_of("parallel"))
def test_every_option_is_a_layout(name):
    layout = build(compose_config(f"parallel={name}").parallel)
    assert isinstance(layout, Layout)
    if layout.is_open:
        assert layout.for_ranks(64).world_size == 64


def test_an_open_axis_takes_the_ranks_that_are_left():
    layout = Layout(shard=-1, tensor=2, context=2).for_ranks(16)
    assert layout.shard == 4
    assert layout.num_data_ranks == 4
    assert layout.weight_parts == 16
    assert Layout(replicate=-1, shard=4).for_ranks(8).replicate == 2
    with pytest.raises(ConfigError, match=r"needs a multiple of 4 ranks, 6 were started"):
        Layout(shard=-1, tensor=4).for_ranks(6)
    with pytest.raises(ConfigError, match=r"shard=2 is made for 2 ranks, 3 were started"):
        Layout(shard=2).for_ranks(3)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"tensor": 0}, "parallel.tensor is 0"),
        ({"context": -1}, "parallel.context is -1"),
        ({"replicate": -1, "shard": -1}, "both -1"),
        ({"zero": 4}, "parallel.zero is 4"),
        ({"zero": 0, "shard": 2}, "parallel.zero=0 with parallel.shard=2"),
        ({"shard": 3, "expert": 2}, "parallel.expert=2 must divide"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes, message):
    with pytest.raises(ConfigError, match=message):
        Layout(**sizes)


def test_launchers_say_how_many_processes_there_are(monkeypatch):
    assert processes_for(Layout(zero=0)) == {"devices": 1, "num_nodes": 1}
    assert processes_for(Layout(shard=8), num_nodes=2) == {"devices": 4, "num_nodes": 2}
    assert processes_for(Layout(shard=-1)) == {"devices": "auto", "num_nodes": 1}
    with pytest.raises(ConfigError, match=r"trainer\.num_nodes=3"):
        processes_for(Layout(shard=8), num_nodes=3)
    for name, value in {"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert processes_for(Layout(shard=-1)) == {"devices": 8, "num_nodes": 2}
    with pytest.raises(ConfigError, match=r"trainer\.devices=4, but the launcher"):
        processes_for(Layout(shard=-1), devices=4)
    with pytest.raises(ConfigError, match="a single rank is made for 1 ranks, 16 were started"):
        processes_for(Layout(zero=0))
