"""Checkpoints come back bit for bit, or are refused by the name of the damaged file."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import resource
import shutil
import signal
import socket
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vlmkit.checkpoint.folder import CheckpointFolder, DiskFullError, writing_checkpoint
from vlmkit.checkpoint.hashed_file import DTYPES
from vlmkit.checkpoint.json_state import dump_state, load_state
from vlmkit.checkpoint.manifest import MANIFEST, FileEntry, Manifest
from vlmkit.checkpoint.run_folder import RunFolder
from vlmkit.checkpoint.store import CheckpointStore
from vlmkit.errors import CheckpointError, ConfigError

FILES = [
    "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    "model.safetensors.index.json", "optimizer.safetensors", "state.safetensors", "state.json",
    MANIFEST,
]  # fmt: skip


def save(store: CheckpointStore, step: int) -> Path:
    torch.manual_seed(step)
    model = {"a": torch.randn(20), "b": torch.randn(20)}
    moments = {"a/step": torch.tensor(float(step)), "a/exp_avg": torch.randn(5).bfloat16()}
    state = {"step": step, "seen": torch.arange(step)}
    return store.save(step, {"model": model, "optimizer": moments}, state, config_hash="abc")


@pytest.fixture
def store(tmp_path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", shard_bytes=100)


def of_every_dtype() -> dict[str, torch.Tensor]:
    raw = torch.arange(64, dtype=torch.uint8)
    tensors = {str(dtype): raw.view(dtype) for dtype in DTYPES if dtype != torch.bool}
    return tensors | {
        "bool": torch.tensor([True, False, True]),
        "0-dim": torch.tensor(3),
        "0-dim bfloat16": torch.tensor(0.1, dtype=torch.bfloat16),
        "empty": torch.empty(0, 3),
        "not finite": torch.tensor([math.nan, math.inf, -math.inf, -0.0]),
        "transposed": torch.arange(6.0).view(2, 3).T,
        "part": torch.arange(12.0)[::2],
        "large": torch.randn(3 << 18),  # 3 MiB, hashed in a thread
    }


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit for bit."""
    as_bytes = [t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*as_bytes)


@pytest.mark.parametrize("shard_bytes", [10**9, 200])
def test_tensors_come_back_bit_for_bit(shard_bytes, tmp_path):
    tensors = of_every_dtype()
    with writing_checkpoint(tmp_path / "c", 1, shard_bytes=shard_bytes) as writer:
        writer.write_tensors("model", tensors)
        writer.write_state({})
    back = CheckpointFolder(tmp_path / "c").verify().tensors("model")
    assert back.keys() == tensors.keys()
    assert all(same(tensors[name], back[name]) for name in tensors)


def test_the_library_reads_our_files_and_writes_the_same_bytes(tmp_path):
    tensors = {name: t.contiguous().clone() for name, t in of_every_dtype().items()}
    with writing_checkpoint(tmp_path / "c", 1) as writer:
        writer.write_tensors("model", tensors)
    library = safetensors.torch.save(tensors, {"format": "pt"})
    read = safetensors.torch.load_file(tmp_path / "c" / "model.safetensors")
    assert all(same(tensors[name], read[name]) for name in tensors)
    assert len(library) == (tmp_path / "c" / "model.safetensors").stat().st_size


def test_weights_load_as_those_of_a_run(tmp_path):
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    run = RunFolder(tmp_path)
    store = CheckpointStore(run.checkpoints, shard_bytes=16)  # a shard each
    store.save(1, {"model": model.state_dict()}, {})
    run.load_weights(other)
    assert torch.equal(model.weight, other.weight)
    assert torch.equal(model.bias, other.bias)


def test_what_cannot_be_written_is_refused_and_leaves_nothing(store):
    with pytest.raises(CheckpointError, match="weight is on meta"):
        store.save(1, {"model": {"weight": torch.empty(1, device="meta")}}, {})
    with pytest.raises(CheckpointError, match="state/callbacks/mine/1 is a set"):
        store.save(1, {}, {"callbacks": {"mine": (0, {1})}})
    assert list(store.folder.iterdir()) == []


# --- state ---------------------------------------------------------------------------------------------

numbers = st.integers() | st.floats() | st.booleans() | st.none()
keys = st.text(max_size=5) | st.sampled_from(["$float", "$tensor", "$table", "a/b"])
tensors_and_arrays = st.sampled_from(
    [
        torch.tensor(1.5), torch.tensor([True]), torch.arange(3), torch.zeros(0, 2),
        np.arange(4, dtype=np.uint32), np.array(2.5), np.arange(6.0).reshape(2, 3).T,
    ]
)  # fmt: skip
states = st.dictionaries(
    keys,
    st.recursive(
        numbers | st.text(max_size=8) | tensors_and_arrays,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.lists(inner, max_size=4).map(tuple)
            | st.dictionaries(keys | st.integers() | st.tuples(st.integers()), inner, max_size=4)
        ),
        max_leaves=12,
    ),
)


def alike(a, b) -> bool:
    """Equal in type and value, through all levels."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, torch.Tensor):
        return same(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
    if isinstance(a, float):
        return math.isnan(a) == math.isnan(b) and (math.isnan(a) or a.hex() == b.hex())
    return a == b


@settings(max_examples=100, deadline=None)
@given(states)
def test_any_state_comes_back(state):
    text, tensors = dump_state(state)
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    written = {name: safetensors.torch.load(safetensors.torch.save({"t": t.contiguous()}))["t"]
               for name, t in tensors.items()}  # fmt: skip
    assert alike(load_state(text, written), state)


def test_states_of_generators_come_back():
    import random

    state = {
        "python": random.getstate(),
        "numpy": np.random.default_rng(1).bit_generator.state,
        "legacy": np.random.RandomState(1).get_state(),
        "torch": torch.get_rng_state(),
    }
    assert alike(load_state(*dump_state(state)), state)


# --- damage --------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize("file", FILES)
def test_damage_is_refused_by_name_and_an_older_checkpoint_offered(file, damage, store, caplog):
    save(store, 1), save(store, 2)
    assert sorted(path.name for path in store.path(2).iterdir()) == sorted(FILES)
    damage(store.path(2) / file)
    with pytest.raises(CheckpointError, match=rf"{file}.*next older one is .*step-00000001"):
        store.load(2)
    with caplog.at_level(logging.WARNING):
        found = store.newest()
    assert found is not None
    assert found.step == 1
    assert file in caplog.text
    damage(store.path(1) / file)
    assert store.newest() is None
    with pytest.raises(CheckpointError, match="none is older"):
        store.load(1)


def test_any_byte_of_the_manifest_counts(store):
    path = save(store, 1) / MANIFEST
    content = path.read_bytes()
    for i in range(0, len(content), 7):
        path.write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :])
        with pytest.raises(CheckpointError, match=MANIFEST):
            CheckpointFolder(path.parent)


def test_a_manifest_that_names_files_elsewhere_is_refused(tmp_path):
    (tmp_path / "outside").write_bytes(b"1")
    (tmp_path / "c").mkdir()
    manifest = Manifest(
        step=1,
        files={"../outside": FileEntry.of(tmp_path / "outside")},
        world_size=1,
        config_hash=None,
        time="",
    )
    (tmp_path / "c" / MANIFEST).write_bytes(manifest.to_bytes())
    with pytest.raises(CheckpointError, match=MANIFEST):
        CheckpointFolder(tmp_path / "c")


def test_files_of_others_are_left_alone(store):
    note = save(store, 1) / "model-00003-of-00002.safetensors"
    note.write_text("no tensors")
    found = store.newest()
    assert found is not None
    assert found.tensors("model").keys() == {"a", "b"}


# --- retention -----------------------------------------------------------------------------------------


def test_what_is_kept(tmp_path):
    store = CheckpointStore(tmp_path / "c", keep_last=2, keep_every=4)
    for step in range(1, 8):
        save(store, step)
        if step == 2:
            store.pin(2)
    assert store.complete() == [2, 4, 6, 7]
    flip(store.path(7) / "state.json")
    cut(store.path(6) / "state.json")
    save(store, 5)  # after going back: it stays though 7 is later, and so does what is not complete
    assert store.complete() == [2, 4, 5, 7]
    assert store.path(6).is_dir()
    found = store.newest()
    assert found is not None
    assert found.step == 5
    store.remove(7)
    assert store.complete() == [2, 4, 5]


def test_keeping_nothing_is_refused(tmp_path):
    for wrong in ({"keep_last": 0}, {"keep_every": 0}):
        with pytest.raises(ConfigError, match="1 at least"):
            CheckpointStore(tmp_path, **wrong)


def test_nothing_is_deleted_when_the_save_fails(tmp_path):
    store = CheckpointStore(tmp_path / "c", keep_last=1)
    save(store, 1)
    with pytest.raises(CheckpointError), store.writing(2) as writer:
        writer.write_state({"bad": object()})
    assert [path.name for path in store.folder.iterdir()] == ["step-00000001"]
    assert store.newest() is not None


def test_leftovers_go_when_their_process_is_gone(store):
    save(store, 1)

    def leftover(host: str, pid: int, name: str = "step-00000002") -> Path:
        path = store.folder / f".{name}.{host}-{pid}-0123abcd.partial"
        path.mkdir()
        return path

    here = socket.gethostname().replace(".", "_")
    dead, alive = leftover(here, 2**22 + 1), leftover(here, os.getppid())
    elsewhere, foreign = leftover("elsewhere", 1), leftover(here, 2**22 + 1, "theirs")
    store.clean()
    assert [p.exists() for p in (dead, alive, elsewhere, foreign)] == [False, True, True, True]
    day_ago = time.time() - 86400
    os.utime(elsewhere, (day_ago, day_ago))
    store.clean()
    assert not elsewhere.exists()
    assert store.complete() == [1]


# --- room ----------------------------------------------------------------------------------------------


def test_too_little_room_is_found_before_anything_is_written(store, monkeypatch):
    save(store, 1)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 10**6))
    with pytest.raises(DiskFullError, match=r"takes 0.00 GB, the disk has 0.00 GB.*keep fewer"):
        save(store, 2)
    assert [path.name for path in store.folder.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("code", [errno.EFBIG, errno.ENOSPC])
def test_a_disk_that_fills_up_in_the_middle_leaves_the_older_checkpoint(code, store, monkeypatch):
    save(store, 1)
    large = {"model": {name: torch.zeros(1 << 18) for name in "ab"}}
    if code == errno.ENOSPC:

        def refuse(file, tensors):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("vlmkit.checkpoint.folder.write_safetensors", refuse)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit fails with EFBIG
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="cannot be written") as caught:
            store.save(2, large, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert isinstance(caught.value, DiskFullError) == (code == errno.ENOSPC)
    assert [path.name for path in store.folder.iterdir()] == ["step-00000001"]
    assert store.newest() is not None
