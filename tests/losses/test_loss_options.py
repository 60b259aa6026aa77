"""Each choice about the loss is one override."""

import pytest

from vlmkit.build import build, compose_config
from vlmkit.losses.cross_entropy import CrossEntropy
from vlmkit.losses.linear_cross_entropy import TorchKernel
from vlmkit.losses.units import PerResponse, PerSample


def loss_of(*overrides: str) -> CrossEntropy:
    return build(compose_config("model=qwen3vl_tiny", *overrides).loss)


@pytest.mark.parametrize(
    ("option", "power"), [("per_token", 0.0), ("sqrt_token", 0.5), ("per_sample", 1.0)]
)
def test_units_go_with_every_weighting(option, power):
    loss = loss_of(f"loss={option}")
    assert (type(loss.unit), loss.weighting.power) == (PerSample, power)
    loss = loss_of(f"loss={option}", "loss/unit=response")
    assert (type(loss.unit), loss.weighting.power) == (PerResponse, power)


def test_what_is_not_chosen():
    loss = loss_of()
    assert (loss.chunk_tokens, loss.z_coefficient, type(loss.kernel)) == (None, 0.0, TorchKernel)
    loss = loss_of("loss.z_coefficient=1e-4", "loss.chunk_tokens=512")
    assert (loss.chunk_tokens, loss.z_coefficient) == (512, 1e-4)
