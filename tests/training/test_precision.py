"""Float8: which layers are changed, what is refused, and, on a GPU, that it trains."""

from copy import deepcopy

import lightning as L
import pytest
import torch

from tests.training.test_compilation import gradients
from vlmkit.build import build, compose_config
from vlmkit.errors import ConfigError
from vlmkit.training.precision import Float8Precision, check_precision, to_float8

CAPABLE = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)


@pytest.mark.skipif(CAPABLE, reason="this GPU knows float8")
def test_float8_without_a_gpu_that_knows_it_is_refused():
    with pytest.raises(ConfigError, match=r"capability 8\.9 .*use precision=bf16_mixed"):
        build(compose_config("precision=fp8").trainer.plugins[0])


def test_other_half_precisions_are_refused():
    trainer = L.Trainer(precision="16-true", accelerator="cpu", logger=False)
    with pytest.raises(ConfigError, match="say precision=bf16_true instead"):
        check_precision(trainer)


@pytest.mark.parametrize("size", ["tiny_model", "tiny_moe"])
def test_only_the_decoders_linear_layers_are_changed(size, request):
    linear = pytest.importorskip("torchao.float8.float8_linear", reason="float8 needs torchao")
    reference = request.getfixturevalue(size)
    model = deepcopy(reference)
    number = to_float8(model)
    changed = {n for n, part in model.named_modules() if isinstance(part, linear.Float8Linear)}
    assert number == len(changed)
    assert "decoder.layers.0.attention.q_proj" in changed
    assert all(name.startswith("decoder.layers.") for name in changed)
    assert not any("router" in name for name in changed)
    assert list(model.state_dict()) == list(reference.state_dict())


@pytest.mark.gpu
@pytest.mark.skipif(not CAPABLE, reason="needs a GPU of compute capability 8.9 or newer")
def test_float8_gradients_are_close(tiny_model, tiny_batch):
    pytest.importorskip("torchao", reason="float8 needs torchao")
    batch = tiny_batch.to("cuda")
    reference = deepcopy(tiny_model).cuda()
    model = deepcopy(reference)
    precision = Float8Precision()
    to_float8(model)
    with precision.forward_context():
        expected, got = gradients(reference, batch), gradients(model, batch)
    for name, grad in expected.items():
        cosine = torch.cosine_similarity(got[name].flatten(), grad.flatten(), dim=0)
        assert float(cosine) > 0.9, (name, float(cosine))  # not measured yet: no GPU so far
