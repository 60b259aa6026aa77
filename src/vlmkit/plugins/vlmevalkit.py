"""Run VLMEvalKit on a vlmkit model, without editing VLMEvalKit.

python -m vlmkit.plugins.vlmevalkit --run <run folder> --data MMBench_DEV_EN --work-dir results
python -m vlmkit.plugins.vlmevalkit --checkpoint <folder> --temperature 0.7 --data MMStar --mode infer

What is not in the list of options goes to VLMEvalKit's own run.py.
"""

from __future__ import annotations

import vlmkit.threads  # isort: skip  # noqa: F401  (before torch)

import argparse
import importlib
import runpy
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vlmkit.errors import ConfigError, UserError

SETTINGS = {
    "run": str,
    "checkpoint": str,
    "device": str,
    "dtype": str,
    "max_new_tokens": int,
    "system_prompt": str,
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "repetition_penalty": float,
    "presence_penalty": float,
    "seed": int,
}
"""Options that become arguments of the model."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Put the model into VLMEvalKit's table of models, then run its run.py.

    Raises:
        SystemExit: with 2, if something is missing; says what.
    """
    parser = argparse.ArgumentParser(
        prog="python -m vlmkit.plugins.vlmevalkit", allow_abbrev=False, description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--name", default="vlmkit", help="of the model, in VLMEvalKit's results")
    parser.add_argument(
        "--kit", type=Path, help="folder of VLMEvalKit, if it is not installed from one"
    )
    for option, kind in SETTINGS.items():
        parser.add_argument(f"--{option.replace('_', '-')}", type=kind, default=argparse.SUPPRESS)
    own, rest = parser.parse_known_args(arguments)
    settings = {name: getattr(own, name) for name in SETTINGS if hasattr(own, name)}
    try:
        script = insert(own.name, settings, rest, own.kit)
    except UserError as error:
        print(f"vlmevalkit: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    sys.argv = [str(script), *rest, "--model", own.name]
    runpy.run_path(str(script), run_name="__main__")


def insert(
    name: str, settings: dict[str, Any], rest: Sequence[str], kit: Path | None = None
) -> Path:
    """Make the model known to VLMEvalKit, and find its run.py.

    Raises:
        ConfigError: VLMEvalKit is not there, the name is taken, or the arguments name other models.
    """
    if ("run" in settings) == ("checkpoint" in settings):
        raise ConfigError("give either --run <run folder> or --checkpoint <folder or hub id>")
    if taken := [word for word in rest if word.split("=")[0] in ("--model", "--config")]:
        raise ConfigError(f"{taken[0]}: the model is the one of --run or --checkpoint")
    if kit is not None:
        sys.path.insert(0, str(kit.resolve()))
    try:
        table = importlib.import_module("vlmeval.config").supported_VLM
    except ImportError as error:
        raise ConfigError(
            f"VLMEvalKit cannot be imported ({error}); clone it, `pip install -e` it, or name its "
            "folder: --kit <folder>"
        ) from error
    script = Path(sys.modules["vlmeval"].__file__ or "").resolve().parents[1] / "run.py"
    if not script.is_file():
        raise ConfigError(
            f"{script}: there is no run.py; name a clone of VLMEvalKit: --kit <folder>"
        )
    if name in table:
        raise ConfigError(f"--name {name}: VLMEvalKit has a model of that name")
    from vlmkit.plugins.vlmevalkit_model import VlmkitModel

    table[name] = partial(VlmkitModel, **settings)
    return script


if __name__ == "__main__":
    main()
