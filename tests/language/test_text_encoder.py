"""SigLIP-2's text tower against transformers', weights and tokens and all."""

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Siglip2TextConfig, Siglip2TextModel

from vlmkit.attention.sdpa import SDPAAttention
from vlmkit.errors import CheckpointError
from vlmkit.language.captions import Retokenized
from vlmkit.language.text_encoder import CaptionInputs, TextEncoder

SIZES = {"vocab_size": 50, "dim": 32, "depth": 2, "mlp_dim": 64, "num_heads": 2, "embed_dim": 24}


@pytest.fixture
def theirs() -> Siglip2TextModel:
    torch.manual_seed(0)
    config = Siglip2TextConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        projection_size=24,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = Siglip2TextModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def published(model: Siglip2TextModel) -> dict[str, torch.Tensor]:
    """As the hub's checkpoints name them, beside a vision tower."""
    weights = {f"text_model.{key}": value for key, value in model.state_dict().items()}
    return {**weights, "vision_model.head.probe": torch.zeros(1)}


def tower(init, **sizes) -> TextEncoder:
    encoder = TextEncoder(
        **{**SIZES, "max_tokens": 8, **sizes}, attention=SDPAAttention(), init=str(init)
    )
    encoder.reset_parameters()
    return encoder


@torch.no_grad()
def test_captions_are_encoded_as_by_transformers(theirs, tmp_path):
    save_file(published(theirs), tmp_path / "model.safetensors")
    ours = tower(tmp_path)
    captions = [[3, 4, 5], [6, 7, 8, 9, 1, 0, 0, 0], [2, 1, 1]]
    found = ours(CaptionInputs.pack(captions))
    for vector, caption in zip(found, captions, strict=True):
        expected = theirs(input_ids=torch.tensor([caption])).pooler_output[0]
        torch.testing.assert_close(vector, expected, rtol=0, atol=5e-6)  # measured 4.8e-7


def test_weights_that_do_not_fit_are_named(theirs, tmp_path):
    save_file(published(theirs), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no value: blocks\.2\.norm1\.weight"):
        tower(tmp_path, depth=3)
    with pytest.raises(CheckpointError, match=r"token_embedding\.weight is \(50, 32\)"):
        tower(tmp_path, vocab_size=60)
    with pytest.raises(CheckpointError, match=r"there is no \.safetensors file"):
        tower(tmp_path / "absent")
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="not readable as safetensors"):
        tower(tmp_path)


def words(*vocabulary: str) -> Tokenizer:
    ids = {word: number for number, word in enumerate(("<pad>", "<unk>", *vocabulary))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_captions_are_written_anew_in_the_towers_tokens(tmp_path):
    data = words("Red", "a", "fox")
    words("fox", "a", "red").save(str(tmp_path / "tokenizer.json"))
    captions = Retokenized(data, str(tmp_path), max_tokens=4)
    assert captions(data.encode("a Red fox").ids) == ((3, 4, 2, 0), False)
    assert captions(data.encode("a a a a fox").ids) == ((3, 3, 3, 3), True)
    assert captions([]) == ((), False)
    with pytest.raises(CheckpointError, match=r"absent/tokenizer\.json"):
        Retokenized(data, str(tmp_path / "absent"))
