"""Look at a training step: what the model gets, as pages for a browser and as text.

    python -m vlmkit.inspect data=quickstart
    python -m vlmkit.inspect run=<run folder> step=100 out=pages

Every option of `python -m vlmkit.train` is one here, too. One page per micro-batch, which needs neither a
network nor any other file.
"""

from __future__ import annotations

import vlmkit.threads  # isort: skip  # noqa: F401  (before torch)

import sys
from itertools import islice
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from vlmkit.build import build, entry_point
from vlmkit.checkpoint.run_folder import RunFolder
from vlmkit.data.datamodule import VLMDataModule
from vlmkit.errors import ConfigError
from vlmkit.inspection.page import page, page_name
from vlmkit.inspection.terminal import summary
from vlmkit.inspection.tokens import Vocabulary
from vlmkit.inspection.view import MicroBatch, view
from vlmkit.runs import build_processor, read_config

OWN_KEYS = ("run", "step", "rank", "world_size", "out", "text_samples")


@entry_point("inspect")
def main(config: DictConfig) -> None:
    """Write the pages of a step, and print the short form."""
    if not (0 <= config.rank < config.world_size and config.step >= 0):
        raise ConfigError(
            f"step={config.step} rank={config.rank} world_size={config.world_size}: give a step from 0 "
            "and a rank below world_size"
        )
    data, origin = data_of(config)
    batches = micro_batches(data, config.step, config.rank, config.world_size, origin)
    vocabulary = Vocabulary(data.processor.tokenizer)
    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    console = Console()
    for batch in batches:
        console.print(summary(batch, vocabulary, config.text_samples), highlight=False)
        path = folder / page_name(batch.step, batch.number)
        path.write_text(page(batch, vocabulary), encoding="utf-8")
        console.print(f"page: {path}\n", markup=False, highlight=False, soft_wrap=True)


def data_of(config: DictConfig) -> tuple[VLMDataModule, str]:
    """The data of a run or of the composed config, and where they come from in words.

    Raises:
        ConfigError: a run is named beside options of a config.
        CheckpointError: the folder is not a run.
    """
    if config.run is None:
        data: VLMDataModule = build(config.data)
        return data, " ".join(sys.argv[1:]) or "the quickstart"
    others = [word for word in sys.argv[1:] if _is_option_of_train(word)]
    if others:
        raise ConfigError(f"run={config.run} brings its own config: leave out {' '.join(others)}")
    files = RunFolder(config.run)
    config = read_config(files)
    processor = build_processor(config, files)
    return build(config.data, processor=processor), str(files.path)


def micro_batches(
    data: VLMDataModule, step: int, rank: int = 0, world_size: int = 1, origin: str = ""
) -> list[MicroBatch]:
    """What a rank gets in a step, cut up for pages.

    Args:
        data: as training would use it.
        step: of the optimiser, from 0.
        rank: which part of the step, where several share it.
        world_size: ranks.
        origin: where the data come from, in words.
    """
    tickets = data.planner.tickets(data.samples, data.planner.start())
    ticket = next(islice(tickets, step, None))
    steps = data.training_steps(rank, world_size)
    planned, rows, failed = steps.load(ticket)
    skipped = [*planned.skipped, *failed]
    names = data.mixture.names
    batch = data.rows.step_batch(ticket.step, rows, skipped, data.processor, names)
    examples = iter([example for row in rows for example in row])
    return [
        view(
            micro,
            list(islice(examples, micro.num_samples)),
            data.processor,
            limits=data.rows.limits,
            work=data.work,
            step=ticket.step,
            number=number,
            num_micro_batches=len(batch.micro_batches),
            mean_work=float(planned.costs.mean()) if len(planned.costs) else 0.0,
            skipped=skipped,
            facts=facts(data, origin, rank, world_size),
        )
        for number, micro in enumerate(batch.micro_batches)
    ]


def facts(data: VLMDataModule, origin: str, rank: int, world_size: int) -> dict[str, str]:
    """How the batch was made, in words."""
    processor, rows = data.processor, data.rows
    token = (processor.image.patch_size * processor.image.merge_size) ** 2
    image, video = processor.image, processor.video
    return {
        "from": origin,
        **({"rank": f"{rank} of {world_size}"} if world_size > 1 else {}),
        "planner": type(data.planner).__name__,
        "rows per micro-batch": str(rows.rows_per_micro_batch),
        "padding": "to the budget" if rows.fixed_length else "to the longest row",
        "template": type(processor.template).__name__,
        "times": type(processor.temporal).__name__,
        "vocabulary": f"{processor.tokenizer.get_vocab_size():,}",
        "images": f"{image.min_pixels // token:,} to {image.max_pixels // token:,} visual tokens",
        "videos": f"{video.fps:g} fps, {video.min_frames} to {video.max_frames} frames",
    }


def _is_option_of_train(word: str) -> bool:
    key = word.partition("=")[0].lstrip("+~")
    return "=" in word and not key.startswith(("-", "hydra")) and key not in OWN_KEYS


if __name__ == "__main__":
    main()
