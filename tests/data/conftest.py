"""Video files that several tests look at."""

from __future__ import annotations

import pytest

from tests.data.clips import Clips


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    return Clips(tmp_path_factory.mktemp("clips"))
