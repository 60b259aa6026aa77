"""Video files and decoding processes that several tests look at."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.data.clips import Clips
from tests.data.fake_readers import Misbehaving
from vlmkit.data.frames.decode_process import Guarded


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    return Clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture
def guard() -> Iterator[Guarded]:
    """Ends requests after a second."""
    guard = Guarded(Misbehaving, time_limit_s=1.0)
    yield guard
    guard.close()
