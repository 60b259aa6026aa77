"""What it gains that a new answer takes the place of each finished one, when answers differ in length.

python -m benchmarks.ragged_generation
python -m benchmarks.ragged_generation --device cuda --requests 512 --rows 64

Prompts of 16 to 128 tokens; answers are drawn and end at a stop id after 40 tokens on average, 256 at most.
Batch by batch, the next requests begin when all rows have left; rows that stop leave in both ways. That both
give the same answers is asserted. One thread; process CPU time on the CPU, wall time elsewhere; both in turn
within a round, and the ratio is the median of the rounds'. The last line is one JSON object.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from benchmarks.generation import SMALL

from vlmkit.build import build_model
from vlmkit.checkpoint.parity_cases import Case, InputSpec, make_inputs
from vlmkit.models.generation import (
    Budget,
    Decoding,
    Generated,
    Request,
    Sampling,
    generate_many,
)
from vlmkit.models.hf_batch import batch_from_hf
from vlmkit.models.qwen3vl import Qwen3VL


def make_requests(model: Qwen3VL, number: int, mean: int = 40, most: int = 256) -> list[Request]:
    """Ragged prompts whose answers end after `mean` tokens on average."""
    random = torch.Generator().manual_seed(0)
    spec, requests = InputSpec.of(model), []
    stops = tuple(range(model.vocab_size // mean))  # fresh weights draw nearly evenly
    how = Decoding(max_new_tokens=most, sampling=Sampling(temperature=1.0), stop_ids=stops)
    for i in range(number):
        length = int(torch.randint(16, 129, (), generator=random))
        inputs = make_inputs(Case(rows=[[length]]), spec, seed=i)
        prompt = batch_from_hf(inputs, model.special_tokens)
        requests.append(Request(prompt=prompt, decoding=how, sample=i))
    return requests


def continuous(model: Qwen3VL, requests: Sequence[Request], budget: Budget) -> list[Generated]:
    """Rows that leave are replaced."""
    return generate_many(model, requests, budget=budget, lookahead=len(requests))


def by_batch(model: Qwen3VL, requests: Sequence[Request], budget: Budget) -> list[Generated]:
    """The longest first, too; a batch begins when the one before has ended."""
    order = sorted(range(len(requests)), key=lambda i: -requests[i].tokens)
    found: dict[int, Generated] = {}
    for start in range(0, len(order), budget.max_rows):
        batch = order[start : start + budget.max_rows]
        made = generate_many(model, [requests[i] for i in batch], budget=budget)
        found |= dict(zip(batch, made, strict=True))
    return [found[i] for i in range(len(requests))]


def main() -> None:
    """Run both in turn and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build_model(*SMALL, device=options.device).eval()
    assert isinstance(model, Qwen3VL)
    requests = make_requests(model, options.requests)
    budget = Budget(max_rows=options.rows, kv_tokens=None)
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    ways: list[Callable[..., list[Generated]]] = [continuous, by_batch]
    answers = [[one.token_ids for one in way(model, requests, budget)] for way in ways]
    same = sum(one == other for one, other in zip(*answers, strict=True))
    # a draw may fall between two sums that differ by rounding
    assert same >= 0.95 * len(requests), f"{same} of {len(requests)} answers are the same"
    lengths = [len(ids) for ids in answers[0]]
    print(
        f"{same} of {len(requests)} answers are the same; {min(lengths)} to {max(lengths)} tokens"
    )
    found = []
    for i in range(options.rounds):
        spent = [0.0, 0.0]
        for which in (0, 1) if i % 2 == 0 else (1, 0):
            start = clock()
            ways[which](model, requests, budget)
            spent[which] = clock() - start
        rates = [sum(lengths) / one for one in spent]
        print(f"  round {i + 1}: continuous {rates[0]:.0f} tokens/s, by batch {rates[1]:.0f}")
        found.append(spent[1] / spent[0])
    print(
        json.dumps(
            {
                "speed": round(statistics.median(found), 3),
                "spread": [round(min(found), 3), round(max(found), 3)],
            }
        )
    )


if __name__ == "__main__":
    main()
