from __future__ import annotations

import pytest

pytest.importorskip("starlette", reason="pip install 'vlmkit[serve]'")

from tests.serving.served import Tiny
from tests.untrained import save_run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny.load(save_run(tmp_path_factory.mktemp("served") / "tiny"))
