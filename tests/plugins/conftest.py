from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.untrained import save_run

KITS = Path(__file__).parent / "kits"
NAMES = ("lmms_eval", "vlmeval", "vlmkit.plugins.lmms", "vlmkit.plugins.vlmevalkit_model")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("plugged") / "tiny")


@pytest.fixture(params=["interface", "installed"])
def lmms_eval(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Make lmms-eval importable: as much of it as is documented, or itself."""
    forget()
    if request.param == "interface":
        monkeypatch.syspath_prepend(str(KITS))
    elif importlib.util.find_spec("lmms_eval") is None:
        pytest.skip("lmms-eval is not installed")
    yield str(request.param)
    forget()


def forget() -> None:
    """Modules of harnesses, and those that import them, are imported anew."""
    for name in list(sys.modules):
        if name.startswith(NAMES):
            del sys.modules[name]
