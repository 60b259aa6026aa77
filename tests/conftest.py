"""The tiny model and batch that most tests look at."""

from __future__ import annotations

import os

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tests.samples import PAD_ID, image_example, text_example, two_images_example, video_example
from vlmkit.batch import VLMBatch
from vlmkit.build import build_model
from vlmkit.data.collate import collate
from vlmkit.models.qwen3vl import Qwen3VL


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)


def spread(model: torch.nn.Module) -> torch.nn.Module:
    """Larger weights than at initialisation, so that every part matters to the output."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(
                noise * (0.5 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.1)
            )
    return model


@pytest.fixture(scope="session")
def tiny_model() -> Qwen3VL:
    torch.manual_seed(0)
    return spread(build_model("model=qwen3vl_tiny")).eval()


@pytest.fixture(scope="session")
def tiny_moe() -> Qwen3VL:
    torch.manual_seed(0)
    return spread(build_model("model=qwen3vl_tiny_moe")).eval()


@pytest.fixture(scope="session")
def tiny_batch() -> VLMBatch:
    """Two packed rows: text and one image; two images and a video."""
    return collate(
        [
            [text_example(0), image_example(1)],
            [two_images_example(2), video_example(3)],
        ],
        pad_id=PAD_ID,
        merge_size=2,
    )
