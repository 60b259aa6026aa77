"""The order of samples: exact shares, nothing repeated early, any place in no time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.toys import Numbered, sizes_of
from vlmkit.data.order.mixture import EpochUnit, Mixture, TokenUnit, Weighted
from vlmkit.data.order.permutation import Permutation
from vlmkit.data.sizes.size_table import SizeTable


@given(st.integers(1, 3000), st.integers(0, 2**32 - 1))
def test_a_permutation_holds_everything_once(size, seed):
    order = Permutation(size, (seed,))(np.arange(size))
    assert sorted(order.tolist()) == list(range(size))


def test_a_permutation_can_be_asked_anywhere():
    order = Permutation(10**9, (3,))
    places = np.array([0, 5, 999_999_999])
    assert order(places).tolist() == [int(order(np.array([place]))[0]) for place in places]
    assert not np.array_equal(order(places), Permutation(10**9, (4,))(places))


def test_a_permutation_looks_random():
    """Fixed points and rising pairs as often as chance has them."""
    order = Permutation(20_000, (1,))(np.arange(20_000))
    assert (order == np.arange(20_000)).sum() < 8  # one on average; measured 0
    assert abs((np.diff(order) > 0).mean() - 0.5) < 0.02  # measured 0.502


weights = st.lists(st.floats(0.01, 10), min_size=1, max_size=5)


@settings(max_examples=30, deadline=None)
@given(weights, st.integers(0, 5))
def test_blocks_hold_exact_shares_and_sources_repeat_only_when_used_up(shares, seed):
    parts = {
        f"s{i}": Weighted(source=Numbered(37 + 11 * i), weight=w) for i, w in enumerate(shares)
    }
    mixture = Mixture(parts, seed=seed)
    assert mixture.counts.sum() == mixture.block
    for name, count, share in zip(mixture.names, mixture.counts, mixture.shares, strict=True):
        assert abs(count / mixture.block / share - 1) < 0.02, name
    at = mixture.locate(np.arange(2 * mixture.block))
    for number, part in enumerate(parts.values()):
        mine = at.part == number
        assert mine[: mixture.block].sum() == mixture.counts[number]
        positions, size = at.position[mine], len(part.source)
        for epoch in range(len(positions) // size):
            passed = positions[epoch * size : (epoch + 1) * size]
            assert sorted(passed.tolist()) == list(range(size))
            assert (at.epoch[mine][epoch * size : (epoch + 1) * size] == epoch).all()


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
def test_samples_depend_on_their_index_alone(indices):
    mixture = Mixture({"a": Weighted(source=Numbered(50)), "b": Weighted(source=Numbered(7))})
    together = mixture.locate(np.array(indices))
    for i, index in enumerate(indices):
        alone = mixture.locate(np.array([index]))
        assert (alone.part[0], alone.position[0]) == (together.part[i], together.position[i])
        found = mixture[index]
        assert found.source == mixture.names[int(alone.part[0])]
        assert found.meta["number"] == int(alone.position[0])


def test_weights_can_count_epochs_tokens_and_sizes():
    small, large = Numbered(100), Numbered(300)
    counted = Mixture(
        {"a": Weighted(source=small, weight=2), "b": Weighted(source=large)}, unit=EpochUnit()
    )
    assert counted.shares.tolist() == pytest.approx([0.4, 0.6])
    assert counted.samples_per_epoch == pytest.approx(500)

    tables = [SizeTable(sizes=sizes_of([n] * 10), codes=np.zeros(10, np.uint8)) for n in (100, 400)]
    parts = {
        str(i): Weighted(source=Numbered(10), sizes=table, weight=1)
        for i, table in enumerate(tables)
    }
    assert Mixture(parts, unit=TokenUnit()).shares.tolist() == pytest.approx([0.8, 0.2])
    with pytest.raises(ValueError, match=r"\['a'\] have none: run python -m vlmkit.stats"):
        Mixture({"a": Weighted(source=small)}, unit=TokenUnit())

    for temperature, expected in ((1.0, 0.25), (2.0, 1 / (1 + 3**0.5)), (1e9, 0.5)):
        both = {
            n: Weighted(source=s, temperature=temperature)
            for n, s in zip("ab", (small, large), strict=True)
        }
        assert Mixture(both).shares[0] == pytest.approx(expected)


def test_a_share_of_text_keeps_the_rest_in_proportion():
    parts = {
        "text": Weighted(source=Numbered(10), text_only=True),
        "web": Weighted(source=Numbered(10), weight=3),
        "video": Weighted(source=Numbered(10), weight=1),
    }
    assert Mixture(parts, text_share=0.2).shares.tolist() == pytest.approx([0.2, 0.6, 0.2])
    with pytest.raises(ValueError, match="no source with text_only: true has a weight"):
        Mixture({"web": parts["web"]}, text_share=0.2)
    with pytest.raises(ValueError, match="between 0 and 1"):
        Mixture(parts, text_share=2)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({}, "positive weights, got {}"),
        ({"a": Weighted(source=Numbered(3), weight=-1)}, "positive weights, got {'a': -1"),
        ({"a": Weighted(source=Numbered(0))}, r"sources \['a'\] are empty"),
        ({"a": Weighted(source=Numbered(3), temperature=0)}, "temperature is 0"),
        (
            {"a": Weighted(source=Numbered(3)), "b": Weighted(source=Numbered(3), weight=1e-12)},
            "smallest share is 1e-12: leave that source out",
        ),
    ],
)
def test_unusable_mixtures_are_refused(parts, words):
    with pytest.raises(ValueError, match=words):
        Mixture(parts)
