from __future__ import annotations

import pytest
from hypothesis import settings

from vlmkit.build import compose_config
from vlmkit.data.processor import Processor
from vlmkit.runs import build_processor

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


@pytest.fixture(scope="session")
def tiny_processor() -> Processor:
    return build_processor(compose_config("model=qwen3vl_tiny", "run_dir=none"))
