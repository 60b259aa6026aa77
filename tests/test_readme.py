"""What the README shows works as written."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
from torch import nn

from vlmkit.build import compose_config

README = (Path(__file__).parents[1] / "README.md").read_text()
COMMANDS = sorted(set(re.findall(r"python -m vlmkit\.\w+[^`\n#]*", README)))


def test_the_snippet_runs():
    code = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    names: dict[str, object] = {}
    exec(code, names)
    assert isinstance(names["model"], nn.Module)
    assert type(names["model"].fusion).__name__ == "FirstLayerOnly"


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_exist_and_compose(command):
    module, *words = shlex.split(command.removeprefix("python -m "))
    assert callable(importlib.import_module(module).main)
    overrides = [
        word.split(",")[0]  # the first value of a sweep
        for word in words
        if "=" in word and "<" not in word and not word.startswith("...")
    ]
    compose_config(*overrides, config_name=module.rpartition(".")[2])


def test_pictures_and_links_exist():
    root = Path(__file__).parents[1]
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    local = [target for target in targets if not target.startswith("http")]
    assert local
    for target in local:
        assert (root / target).exists(), target
