"""How logits are cut into chunks, and what that saves."""

import psutil
import pytest
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from vlmkit.device_memory import GIB
from vlmkit.losses import chunks
from vlmkit.losses.chunks import chunk_tokens_for
from vlmkit.losses.linear_cross_entropy import TorchKernel, weighted_linear_cross_entropy

CPU = torch.device("cpu")


@pytest.fixture
def device_of(monkeypatch):
    """Make the device as large as wanted, in GiB."""

    def set_size(size: float) -> None:
        chunk_tokens_for.cache_clear()
        monkeypatch.setattr(chunks, "total_gib", lambda _: size)

    yield set_size
    chunk_tokens_for.cache_clear()


@pytest.mark.parametrize(
    ("size", "vocab", "expected"),
    [
        (139, 151_936, 1024),  # H200
        (80, 151_936, 1024),
        (24, 151_936, 256),
        (16, 32_768, 1024),
        (16, 1024, 4096),
        (1, 151_936, 64),
        (1e-3, 151_936, 64),
        (1e6, 8, 4096),
    ],
)
def test_the_choice_follows_the_memory(device_of, size, vocab, expected):
    device_of(size)
    chosen = chunk_tokens_for(CPU, vocab)
    assert chosen == expected
    if chosen > chunks.FEWEST:
        assert chosen * vocab * chunks.BYTES_PER_LOGIT <= size * GIB * chunks.SHARE


def test_the_choice_does_not_follow_what_is_free_at_the_moment(monkeypatch):
    """A resumed run finds other memory free, and must still sum up in the same order."""
    chunk_tokens_for.cache_clear()
    before = chunk_tokens_for(CPU, 151_936)
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=0, free=0))
    chunk_tokens_for.cache_clear()
    assert chunk_tokens_for(CPU, 151_936) == before


def memory_of(run) -> tuple[int, int]:
    """Most bytes that torch held at once beyond those at the start, and the largest allocation."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()
    sizes = [e.nbytes() for e in events if e.name() == "[memory]"]
    held = torch.tensor(sizes).cumsum(0)
    return int(held.max()), max(sizes)


def test_logits_of_all_tokens_never_exist():
    tokens, vocab, dim, chunk = 512, 32_768, 16, 32
    torch.manual_seed(0)
    rows, head = torch.randn(tokens, dim, requires_grad=True), torch.randn(vocab, dim)
    head.requires_grad_()
    targets, weights = torch.randint(0, vocab, (tokens,)), torch.ones(tokens)

    def ours() -> None:
        total, _, _ = weighted_linear_cross_entropy(
            rows,
            head,
            targets,
            weights,
            kernel=TorchKernel(),
            z_coefficient=1e-4,
            chunk_tokens=chunk,
        )
        total.backward()

    def plain() -> None:
        F.cross_entropy(rows @ head.T, targets, reduction="sum").backward()

    logits = tokens * vocab * 4  # bytes, in float32
    peak, largest = memory_of(ours)
    plain_peak, _ = memory_of(plain)
    of_a_chunk = logits * chunk // tokens
    assert largest == of_a_chunk  # the head and its gradient are smaller: dim is less than chunk
    assert peak < 4 * of_a_chunk  # measured 3.02, of which the head's gradient is 0.5
    assert plain_peak > 2 * logits  # measured 3.0; a chunk is a sixteenth of these
