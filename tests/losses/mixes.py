"""Samples of several responses, documents with pictures among them, and what they should weigh."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from tests.samples import PAD_ID, example, picture
from vlmkit.batch import VLMBatch
from vlmkit.data.collate import collate
from vlmkit.data.processor import Example
from vlmkit.sequence import TextSpan

# a sample: its runs in order; None is a picture, else (tokens, response), response -1 is not scored
Runs = list[tuple[int, int] | None]

chats = st.lists(
    st.one_of(st.none(), st.tuples(st.integers(1, 6), st.integers(-1, 3))), min_size=1, max_size=7
)
documents = st.lists(
    st.one_of(st.none(), st.tuples(st.integers(1, 9), st.just(0))), min_size=1, max_size=6
)
samples = st.one_of(chats, documents)


def make(runs: Runs, seed: int) -> Example:
    generator = torch.Generator().manual_seed(seed)
    spans, grids = [], []
    for run in runs:
        if run is None:
            spans.append(picture(1, 2))
            grids.append((1, 2, 4))
            continue
        count, response = run
        ids = torch.randint(0, 900, (count,), generator=generator).tolist()
        scored = response >= 0
        spans.append(TextSpan(token_ids=tuple(ids), scored=scored, response=max(response, 0)))
    return example(spans, grids, seed)


def scored_tokens(runs: Runs) -> list[int]:
    """Response of each token that is predicted: all scored ones but a sample's first token."""
    tokens: list[int] = []
    for run in runs:
        tokens += [-1, -1] if run is None else [run[1]] * run[0]
    return [response for response in tokens[1:] if response >= 0]


def cut(examples: list[Example], rows: list[int]) -> VLMBatch:
    """A micro-batch in which example i stands in row `rows[i]`; empty rows are left out."""
    packed = [[e for e, r in zip(examples, rows, strict=True) if r == row] for row in range(8)]
    return collate([row for row in packed if row], pad_id=PAD_ID, merge_size=2)
