"""`python -m vlmkit.parity checkpoint=<folder>`: the same checkpoint in transformers and in vlmkit.

Both implementations get the same seeded inputs (text, one image, several images, a video, a mix); a
table shows the worst error by part and by layer. Exit code 1 if the logits differ by more than allowed.
Models are loaded one after the other, so one of them is all that has to fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import torch
from omegaconf import DictConfig
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn

from vlmkit.build import entry_point
from vlmkit.checkpoint.compare import (
    GRADIENT,
    LOGITS,
    Difference,
    Recording,
    compare,
    record_ours,
    record_reference,
)
from vlmkit.checkpoint.parity_cases import CASES, Inputs, InputSpec, make_inputs
from vlmkit.errors import ConfigError, UserError
from vlmkit.pretrained import (
    checkpoint_folder,
    load_pretrained,
    parse_dtype,
)

COMPLETE = "mix"  # the case that reaches every part; it goes backward, too
INSTALL = "pip install 'transformers>=5'"

Report = Mapping[str, Mapping[str, Difference]]
"""Differences by case and name."""


def run_parity(
    checkpoint: str | Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Run all cases through both implementations.

    Args:
        checkpoint: a folder or a hub repository.
        dtype: of parameters and activations in both.
        device: where both run.
        seed: of tokens and pixels.
        progress: shows how far it is; None is silent.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        UserError: transformers is not installed.
    """
    transformers = _transformers()
    progress = progress or Progress(disable=True)
    folder = checkpoint_folder(checkpoint)
    model = load_pretrained(folder, dtype=dtype, device=device)
    spec = InputSpec.of(model)
    cases = {name: make_inputs(case, spec, seed) for name, case in CASES.items()}
    ours = _run(model, record_ours, cases, progress)
    layout = model.to("meta")  # its weights are not needed any more
    reference = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, dtype=dtype, attn_implementation="sdpa"
    )
    theirs = _run(reference.to(device).eval(), record_reference, cases, progress)
    return {name: compare(layout, theirs[name], ours[name]) for name in cases}


def worst(report: Report, name: str) -> Difference:
    """The largest difference of a part over all cases."""
    found = [differences[name] for differences in report.values() if name in differences]
    return max(found, key=lambda difference: difference.worst)


def outputs_table(report: Report) -> Table:
    """One row per part, one column per case; the last is relative to the reference's largest value."""
    table = Table(title="worst absolute error of outputs, vlmkit against transformers", box=SIMPLE)
    table.add_column("part", no_wrap=True)
    for case in (*report, "of max"):
        table.add_column(case, justify="right", min_width=7)
    for name in report[COMPLETE]:
        if not name.startswith(GRADIENT):
            found = [differences.get(name) for differences in report.values()]
            relative = max(cell.relative for cell in found if cell)
            cells = [f"{cell.worst:.1e}" if cell else "" for cell in found]
            table.add_row(name, *cells, f"{relative:.1e}")
    return table


def gradients_table(report: Report) -> Table:
    """One row per parameter, by its published name."""
    table = Table(title=f"worst error of gradients, {COMPLETE}", box=SIMPLE)
    table.add_column("parameter", overflow="fold")
    table.add_column("absolute", justify="right", no_wrap=True)
    table.add_column("relative", justify="right", no_wrap=True)
    for name, cell in report[COMPLETE].items():
        if name.startswith(GRADIENT):
            table.add_row(name.removeprefix(GRADIENT), f"{cell.worst:.1e}", f"{cell.relative:.1e}")
    return table


def _run(
    model: nn.Module,
    record: Callable[..., Recording],
    cases: Mapping[str, Inputs],
    progress: Progress,
) -> dict[str, Recording]:
    task = progress.add_task(type(model).__module__.partition(".")[0], total=len(cases))
    recordings = {}
    for name, inputs in cases.items():
        recordings[name] = record(model, inputs, backward=name == COMPLETE)
        progress.advance(task)
    return recordings


def _transformers() -> ModuleType:
    """The reference, an optional package."""
    try:
        import transformers
    except ImportError as error:
        raise UserError(f"parity needs transformers, which is not installed: {INSTALL}") from error
    if int(transformers.__version__.partition(".")[0]) < 5:
        raise UserError(
            f"parity needs transformers 5, this is {transformers.__version__}: {INSTALL}"
        )
    transformers.utils.logging.disable_progress_bar()
    return transformers


@entry_point("parity")
def main(config: DictConfig) -> None:
    """Print the table; exit with 1 if the logits differ by more than `tolerance`."""
    if config.checkpoint is None:
        raise ConfigError("checkpoint=<folder or hub repository> is needed")
    dtype = parse_dtype(config.dtype) or torch.float32
    console = Console()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        report = run_parity(config.checkpoint, dtype, config.device, config.seed, progress)
    console.print(outputs_table(report))
    console.print(gradients_table(report))
    error = worst(report, LOGITS).worst
    passed = error <= config.tolerance
    console.print(
        f"logits: worst error {error:.2e} in {config.dtype}, {config.tolerance:.0e} allowed: "
        f"{'passed' if passed else 'FAILED'}"
    )
    if not passed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
