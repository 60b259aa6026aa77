from __future__ import annotations

import pytest

from vlmkit.build import compose_config
from vlmkit.data.processor import Processor
from vlmkit.runs import build_processor


@pytest.fixture(scope="session")
def tiny_processor() -> Processor:
    return build_processor(compose_config("model=qwen3vl_tiny", "run_dir=none"))
