"""How fast answers are made: vlmkit beside transformers' `generate`, same weights, same tokens.

python -m benchmarks.generation
python -m benchmarks.generation --case rollout --rounds 3

Cases: `decode`, 128 new tokens for 1, 8 and 32 prompts of 64 tokens; `rollout`, 8 samples of 32 tokens to
one prompt with images. That both make the same greedy tokens is asserted before anything is timed. One
thread, process CPU time, both in turn within a round; the ratio is the median of those of the rounds.
The last line is one JSON object: {case: {"speed": ratio, "memory": ratio, "spread": [least, most]}};
`benchmarks.train_step` says what they mean, and runs these cases too.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from benchmarks.step.measure import Comparison, compare
from torch import Tensor

from vlmkit.batch import VLMBatch
from vlmkit.build import build_model
from vlmkit.checkpoint.parity_cases import Case, Image, Inputs, InputSpec, Part, make_inputs
from vlmkit.models.generation import Sampling, generate_batch
from vlmkit.models.hf_batch import batch_from_hf
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.pretrained import save_pretrained

SMALL = (  # 15 M parameters in the decoder, 8 M of them in the tied embedding
    "model=qwen3vl_tiny",
    "size.hidden_dim=256",
    "size.num_layers=8",
    "size.num_heads=4",
    "size.num_kv_heads=2",
    "size.head_dim=64",
    "size.mrope_section=[12,10,10]",
    "size.intermediate_dim=768",
    "size.vocab_ranks=32000",
    "size.vocab_size=32768",
    "size.vision_dim=256",
    "size.deepstack_blocks=[1,3,5]",
    "vision.depth=6",
    "vision.mlp_dim=1024",
    "vision.num_heads=4",
)


@dataclass(frozen=True, kw_only=True)
class Work:
    """Prompts and how they are continued.

    Attributes:
        prompts: parts of each.
        samples: answers to each.
        new_tokens: of each answer.
        timed: how tokens are chosen while the clock runs.
    """

    prompts: Sequence[Sequence[Part]]
    samples: int = 1
    new_tokens: int
    timed: Sampling = field(default_factory=Sampling)


def cases(new_tokens: int, rollout_tokens: int) -> dict[str, dict[str, Work]]:
    """Works of each case by name."""
    side = 14  # 196 visual tokens
    long: list[Part] = [100, Image(side, side), 200, Image(side, side), 100, Image(side, side), 206]
    decode = {
        f"decode_{rows}": Work(prompts=[[64]] * rows, new_tokens=new_tokens) for rows in (1, 8, 32)
    }
    rollout = Work(
        prompts=[long], samples=8, new_tokens=rollout_tokens, timed=Sampling(temperature=1.0)
    )
    return {"decode": decode, "rollout": {"rollout": rollout}}


class Contest:
    """One model in both implementations."""

    def __init__(self, overrides: Sequence[str], device: torch.device | None = None) -> None:
        import transformers

        transformers.logging.set_verbosity_error()
        torch.manual_seed(0)
        model = build_model(*overrides).eval()
        assert isinstance(model, Qwen3VL)
        self.device = device or torch.device("cpu")
        with torch.no_grad():  # answers of fresh weights repeat one token
            for parameter in model.decoder.layers.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(4)
        with tempfile.TemporaryDirectory() as folder:
            save_pretrained(model, folder, overwrite=True)
            self.theirs = (
                transformers.AutoModelForImageTextToText.from_pretrained(
                    folder, dtype=torch.float32, attn_implementation="sdpa"
                )
                .to(self.device)
                .eval()
            )
        self.ours = model.to(self.device)

    def inputs(self, work: Work) -> tuple[Inputs, list[VLMBatch]]:
        """The prompts as transformers and as vlmkit take them."""
        spec = InputSpec.of(self.ours)
        theirs = make_inputs(Case(rows=work.prompts, pad_left=True), spec, seed=0)
        if len(work.prompts) == 1:
            return self._moved(theirs), [
                batch_from_hf(theirs, self.ours.special_tokens).to(self.device)
            ]
        assert "pixel_values" not in theirs, "several prompts are text"
        rows = zip(theirs["input_ids"], theirs["attention_mask"].bool(), strict=True)
        return self._moved(theirs), [
            batch_from_hf({"input_ids": ids[mask][None]}, self.ours.special_tokens).to(self.device)
            for ids, mask in rows
        ]

    def _moved(self, inputs: Inputs) -> Inputs:
        return {name: value.to(self.device) for name, value in inputs.items()}

    def run_ours(self, prompts: Sequence[VLMBatch], work: Work, how: Sampling) -> list[list[int]]:
        """Answers of vlmkit."""
        return generate_batch(
            self.ours,
            prompts,
            max_new_tokens=work.new_tokens,
            sampling=how,
            stop_ids=(),
            num_samples=work.samples,
        )

    def run_theirs(self, inputs: Inputs, work: Work, how: Sampling) -> list[list[int]]:
        """Answers of transformers."""
        options: dict[str, Any] = {"do_sample": False}  # greedy refuses several sequences
        if how.temperature > 0:
            options = {"do_sample": True, "temperature": how.temperature, "top_k": 0, "top_p": 1.0}
            options["num_return_sequences"] = work.samples
        made: Tensor = self.theirs.generate(
            **inputs,
            **options,
            max_new_tokens=work.new_tokens,
            min_new_tokens=work.new_tokens,
            pad_token_id=0,
            eos_token_id=None,
        )
        return made[:, inputs["input_ids"].shape[1] :].tolist()

    def check(self, work: Work) -> None:
        """Make sure that both make the same greedy tokens.

        Raises:
            AssertionError: they do not.
        """
        inputs, prompts = self.inputs(work)
        theirs = [
            row for row in self.run_theirs(inputs, work, Sampling()) for _ in range(work.samples)
        ]
        assert self.run_ours(prompts, work, Sampling()) == theirs, "the greedy tokens differ"

    def compare(self, work: Work, rounds: int) -> Comparison:
        """Memory and time of both."""
        inputs, prompts = self.inputs(work)
        return compare(
            lambda: self.run_ours(prompts, work, work.timed),
            lambda: self.run_theirs(inputs, work, work.timed),
            rounds,
            self.device,
        )


def measure(contest: Contest, works: dict[str, Work], rounds: int) -> dict[str, dict[str, Any]]:
    """Check, warm up, measure and time each work; figures by name."""
    results = {}
    for name, work in works.items():
        contest.check(work)  # warms both up, too
        print(f"{name}: greedy tokens are the same", flush=True)
        found = contest.compare(work, rounds)
        made = len(work.prompts) * work.samples * work.new_tokens
        print(
            "  tokens/s: "
            + ", ".join(
                f"{who} {made / max(spent):.0f} to {made / min(spent):.0f}"
                for who, spent in zip(("vlmkit", "transformers"), found.seconds, strict=True)
            ),
            flush=True,
        )
        results[name] = found.as_json()
    return results


def main() -> None:
    """Run one case or all, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=("decode", "rollout"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=128, help="of decode")
    options = parser.parse_args()
    torch.set_num_threads(1)
    contest = Contest(SMALL)
    chosen = cases(options.new_tokens, 32)
    results: dict[str, dict[str, Any]] = {}
    for name, works in chosen.items():
        if options.case in (None, name):
            results |= measure(contest, works, options.rounds)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
