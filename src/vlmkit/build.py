"""Overrides -> config -> objects. Shared by the command line, notebooks and tests.

The only file beside the entry points that imports Hydra: a component never sees a config.
"""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from vlmkit.errors import ConfigError, UserError
from vlmkit.initialization import check_filled, materialize

CONF_DIR = Path(__file__).resolve().parents[2] / "conf"


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _steps_for(num_tokens: float, *per_step: float) -> int:
    return math.ceil(num_tokens / math.prod(per_step))


# ${first:a,b}: the first that is not null; ${steps_for:tokens,rows,row_tokens}: optimiser steps, rounded up
OmegaConf.register_new_resolver("first", _first, replace=True)
OmegaConf.register_new_resolver("steps_for", _steps_for, replace=True)


def compose_config(
    *overrides: str, config_name: str = "train", config_dir: str | Path | None = None
) -> DictConfig:
    """What the command line would compose.

    Args:
        overrides: as on the command line, such as `"model=qwen3vl_8b"` or `"fusion=none"`.
        config_name: entry point whose config to compose (`train`, `generate`, ...).
        config_dir: a folder of your own with more options, as `--config-dir`.

    Raises:
        ConfigError: a key or option does not exist (names the near matches), or a value does not parse.
    """
    try:
        return _compose(overrides, config_name, config_dir)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error, overrides, config_name, config_dir)) from error


def _compose(
    overrides: Iterable[str], config_name: str, config_dir: str | Path | None
) -> DictConfig:
    extra = [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"] if config_dir else []
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return hydra.compose(config_name, overrides=[*overrides, *extra])


def build(config: Any, **objects: Any) -> Any:
    """Instantiate a node that has a `_target_`, with everything below it.

    Args:
        config: the node; a plain value is returned as it is.
        objects: built objects for arguments that the config cannot hold; they win over the config, and
            are handed on as they are (Hydra's own `instantiate` would copy them).

    Raises:
        ConfigError: a constructor refused its arguments; the message is the constructor's own.
    """
    if not OmegaConf.is_config(config):
        return config
    try:
        if not objects:
            return hydra.utils.instantiate(config, _convert_="all")
        names = [str(name) for name in config if not str(name).startswith("_")]
        arguments = {name: build(config[name]) for name in names if name not in objects}
        return hydra.utils.get_class(config._target_)(**arguments, **objects)
    except UserError:
        raise
    except HydraException as error:
        cause = error.__cause__
        if isinstance(cause, ValueError | TypeError | RuntimeError | OSError | ImportError):
            raise ConfigError(f"{_target(config)}: {cause}") from error
        raise ConfigError(str(cause or error)) from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{_target(config)}: {error}") from error
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from error


def build_model(
    *overrides: str,
    config: DictConfig | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    **parts: Any,
) -> nn.Module:
    """A model with initial weights.

    Args:
        overrides: as on the command line.
        config: a composed config, instead of overrides.
        device: where the parameters live; `"meta"` gives shapes only, for any size in seconds.
        dtype: of the parameters; float32 by default.
        parts: built parts that replace configured ones by name, such as `fusion=MyFusion()`; their
            weights stay as they are.

    Raises:
        ConfigError: the parts do not fit together; names both values.
    """
    if config is None:
        config = compose_config(*overrides)
    names = [str(name) for name in config.model if not str(name).startswith("_")]
    if unknown := sorted(set(parts) - set(names)):
        raise ConfigError(f"the model has no part {unknown}; its parts are {names}")
    with torch.device("meta"):
        model: nn.Module = build(config.model, **parts) if parts else build(config.model)
    if dtype is not None:
        model.to(dtype)
    if torch.device(device).type == "meta":
        return model
    materialize(model, device)
    for name, part in model.named_children():
        if name in parts:
            continue
        try:
            part.reset_parameters()  # type: ignore[operator]
            check_filled(part)
        except (ValueError, OSError) as error:
            raise ConfigError(f"{name}: {error}") from error
    return model


def options_of(group: str, config_dir: str | Path | None = None) -> list[str]:
    """Names that may follow `group=` on the command line."""
    folders = [CONF_DIR, *([Path(config_dir)] if config_dir else [])]
    return sorted(
        path.stem
        for folder in folders
        for path in (folder / group).glob("*.yaml")
        if not path.stem.startswith("_")
    )


def options_by_group(config_dir: str | Path | None = None) -> dict[str, list[str]]:
    """All groups, such as `fusion` or `loss/unit`, with the names that may follow `group=`."""
    groups = _groups(CONF_DIR)
    if config_dir:
        groups |= _groups(Path(config_dir))
    return {group: options_of(group, config_dir) for group in sorted(groups)}


def parse_value(text: str) -> Any:
    """What `key=<text>` gives on the command line.

    Raises:
        ConfigError: it is not a value.
    """
    return _parse([f"key={text}"])[0].value()


def job_overrides() -> list[str]:
    """The overrides of the running command, as they were given."""
    return list(HydraConfig.get().overrides.task)


def job_config_dir() -> str | None:
    """The folder of configs that the running command was given as --config-dir."""
    sources = HydraConfig.get().runtime.config_sources
    return next((source.path for source in sources if source.provider == "command-line"), None)


def is_single_run() -> bool:
    """Whether the running command is one job, not one of a sweep."""
    return bool(HydraConfig.get().mode == RunMode.RUN)


def entry_point(
    config_name: str, free_text: Sequence[str] = ()
) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Decorate a function of the composed config into a command: Hydra's, with helpful errors.

    A mistyped key or option, or a UserError, ends the command with its message and exit code 2.

    Args:
        config_name: the file of conf/ that the command composes.
        free_text: keys whose values are taken as they stand, whatever they hold: a question may have a
            comma, an apostrophe or Chinese in it, which Hydra's grammar would trip over.
    """

    def decorate(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @wraps(task)
        def guarded(config: DictConfig) -> Any:
            try:
                return task(config)
            except UserError as error:
                print(f"\n{config_name}: {error}", file=sys.stderr)
                raise SystemExit(2) from None

        command = hydra.main(str(CONF_DIR), config_name, version_base="1.3")(guarded)

        @wraps(task)
        def run() -> None:
            sys.argv[1:] = [quote_free_text(word, free_text) for word in sys.argv[1:]]
            arguments = get_args_parser().parse_known_args()[0]
            if not (
                arguments.help or arguments.hydra_help or arguments.info or arguments.config_name
            ):
                try:
                    for single in _single_runs(arguments.overrides):
                        compose_config(
                            *single, config_name=config_name, config_dir=arguments.config_dir
                        )
                except ConfigError as error:
                    print(f"{config_name}: {error}", file=sys.stderr)
                    raise SystemExit(2) from None
            command()

        return run

    return decorate


def quote_free_text(word: str, keys: Sequence[str]) -> str:
    """Quote the value of `key=value` for Hydra's grammar, unless it is a list, null or quoted already."""
    key, equals, value = word.partition("=")
    is_list = value.startswith("[") and value.endswith("]")
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    if not equals or key not in keys or value == "null" or is_list or is_quoted:
        return word
    escaped = re.sub(r'(\\*)("|$)', lambda m: 2 * m[1] + ('\\"' if m[2] else ""), value)
    escaped = escaped.replace("${", "\\${")
    return f'{key}="{escaped}"'


def _single_runs(overrides: list[str]) -> Iterable[list[str]]:
    """Each value of a sweep once, with the first value of every other."""
    choices = [values for override in _parse(overrides) if (values := _values(override))]
    firsts = [values[0] for values in choices]
    yield firsts
    for i, values in enumerate(choices):
        for value in values[1:]:
            yield [*firsts[:i], value, *firsts[i + 1 :]]


def _parse(overrides: Iterable[str]) -> list[Override]:
    parser = OverridesParser.create()
    parsed: list[Override] = []
    for line in overrides:
        try:
            parsed += parser.parse_overrides([line])
        except HydraException as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"{line}: this is not an override ({reason})") from error
    return parsed


def _values(override: Override) -> list[str]:
    line = override.input_line or ""
    if not override.is_sweep_override():
        return [line]
    if not override.is_discrete_sweep() or override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        return []  # what it stands for is the sweeper's to say
    key = line.split("=", 1)[0]
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def _explain(
    error: Exception, overrides: Iterable[str], config_name: str, config_dir: str | Path | None
) -> str:
    """Say which override is wrong and what was probably meant."""
    options = options_by_group(config_dir)
    parsed = _parse(overrides)
    fine: list[str] = []
    for override in parsed:
        key, value = override.key_or_group, override.value()
        if key in options and isinstance(value, str) and value not in options[key]:
            near = difflib.get_close_matches(value, options[key], cutoff=0.4)
            return (
                f"{key}={value}: there is no such option.{_meant(key + '=', near)} "
                f"Options: {', '.join(options[key])}"
            )
        if key in options and override.input_line:
            fine.append(override.input_line)
    try:
        composed = _compose(fine, config_name, config_dir)
    except (HydraException, OmegaConfBaseException):
        return str(error)
    known = list(dict.fromkeys([*options, *_dotted(composed)]))
    for override in parsed:
        key = override.key_or_group
        adds = override.is_add() or override.is_force_add()
        if key not in known and not adds and not key.startswith("hydra"):
            near = difflib.get_close_matches(key, known, cutoff=0.6)
            if not near:
                near = [name for name in known if name.split(".")[-1] == key.split(".")[-1]][:3]
            return f"{key}: there is no such key.{_meant('', near)}"
    return str(error)


def _groups(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_dir()}


def _meant(prefix: str, near: list[str]) -> str:
    return f" Did you mean {' or '.join(prefix + name for name in near)}?" if near else ""


def _dotted(node: Any, prefix: str = "") -> list[str]:
    """All keys of a config as dotted paths."""
    if not OmegaConf.is_dict(node):
        return []
    names = []
    for key in node:
        path = f"{prefix}{key}"
        names.append(path)
        if not OmegaConf.is_interpolation(node, key) and not OmegaConf.is_missing(node, key):
            names += _dotted(node[key], f"{path}.")
    return names


def _target(config: Any) -> str:
    return str(config.get("_target_", "config")).rpartition(".")[2]
