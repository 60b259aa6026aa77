import pytest
import torch

from vlmkit.batch import VisualTokens
from vlmkit.build import build_model
from vlmkit.errors import ConfigError
from vlmkit.fusion.deepstack import DeepStack
from vlmkit.fusion.none import NoFusion


def test_each_level_is_added_after_its_layer_and_only_there():
    fusion = DeepStack([1, 3], vision_dim=8, hidden_dim=6, receiving_layers=[2, 0])
    hidden = torch.zeros(2, 3, 6)
    first, second = torch.ones(2, 6), 2 * torch.ones(2, 6)
    visual = VisualTokens(
        index=torch.tensor([1, 5]), embeddings=torch.zeros(2, 6), levels=(first, second)
    )
    assert fusion(hidden, 0, visual).flatten(0, 1)[:, 0].tolist() == [0, 2, 0, 0, 0, 2]
    assert fusion(hidden, 2, visual).flatten(0, 1)[:, 0].tolist() == [0, 1, 0, 0, 0, 1]
    assert fusion(hidden, 1, visual) is hidden
    assert not hidden.any()


def test_zero_mergers_equal_no_fusion(tiny_model, tiny_batch):
    silent = DeepStack([1, 2], vision_dim=32, hidden_dim=64)
    for parameter in silent.parameters():
        torch.nn.init.zeros_(parameter)
    fusion = tiny_model.fusion
    with torch.no_grad():
        tiny_model.fusion = silent
        zero = tiny_model.logits(tiny_batch)
        tiny_model.fusion = NoFusion()
        none = tiny_model.logits(tiny_batch)
        tiny_model.fusion = fusion
        full = tiny_model.logits(tiny_batch)
    assert torch.equal(zero, none)
    assert (full - none).abs().max() > 0.1


def test_lists_must_match():
    with pytest.raises(ValueError, match=r"\[1, 2\] and receiving_layers \[0\]"):
        DeepStack([1, 2], 8, 6, receiving_layers=[0])
    with pytest.raises(ValueError, match="names a layer twice"):
        DeepStack([1, 2], 8, 6, receiving_layers=[0, 0])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("fusion.tapped_blocks=[1,4]", r"taps encoder blocks \[1, 4\], but there are only 4"),
        ("fusion.receiving_layers=[0,2]", r"feeds decoder layers \[0, 2\], but there are only 2"),
    ],
)
def test_layers_beyond_the_model_are_refused_at_build(override, words):
    with pytest.raises(ConfigError, match=words):
        build_model("model=qwen3vl_tiny", override, device="meta")
