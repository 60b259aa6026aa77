"""The image-text model: pairs out of packed rows, each embedded as if it were alone."""

import pytest
import torch

from tests.conftest import spread
from tests.samples import (
    PAD_ID,
    example,
    image_example,
    picture,
    text,
    text_example,
    two_images_example,
    video_example,
)
from vlmkit.attention.sdpa import SDPAAttention
from vlmkit.batch import StepBatch
from vlmkit.build import build_model, compose_config
from vlmkit.data.collate import collate
from vlmkit.errors import ConfigError
from vlmkit.language.captions import OwnTokens
from vlmkit.models.image_text import ImageTextModel, Temperature
from vlmkit.models.pairs import PairedStep, pair
from vlmkit.vision.attention_pool import AttentionPool

TINY = ("model=qwen3vl_tiny", "stage=s_vision", "text_encoder=tiny", "run_dir=none")


def no_caption(seed):
    """A picture, and nothing that is scored."""
    return example([text(seed, 4), picture(1, 2), text(seed, 2)], [(1, 2, 4)], seed)


@pytest.fixture(scope="module")
def model() -> ImageTextModel:
    torch.manual_seed(0)
    return spread(build_model(config=compose_config(*TINY))).eval()


def pairs_of(model, *rows, captions=None):
    batch = collate(list(rows), pad_id=PAD_ID, merge_size=2)
    return pair(batch, captions or OwnTokens(), model.blank())


def test_only_samples_with_one_picture_and_text_are_pairs(model):
    examples = [text_example(0), image_example(1), two_images_example(2), no_caption(3)]
    found = pairs_of(model, examples, [video_example(4), image_example(5, 1, 4, answer=9)])
    assert (found.num_pairs, found.num_unpaired, found.num_cut) == (3, 3, 0)
    assert found.vision.grids == ((1, 4, 6), (2, 4, 4), (1, 2, 8))
    assert found.pictures.lengths == (24, 32, 16)  # both frames of the video are one picture
    patches = [image_example(1).patches, video_example(4).patches, image_example(5, 1, 4).patches]
    assert torch.equal(found.vision.patches, torch.cat(patches))
    captions = [text(61, 3), text(54, 6), text(65, 9)]
    assert found.captions.ids.tolist() == [t for span in captions for t in span.token_ids]
    assert found.captions.segments.lengths == (3, 6, 9)


def test_long_captions_are_cut_and_counted(model):
    found = pairs_of(model, [image_example(1, answer=9), image_example(2)], captions=OwnTokens(4))
    assert found.captions.segments.lengths == (4, 3)
    assert found.num_cut == 1


def test_equal_captions_have_equal_keys(model):
    twin = example([picture(1, 2), text(61, 3, scored=True)], [(1, 2, 4)], seed=9)  # as sample 1's
    keys = pairs_of(model, [image_example(1), image_example(2), twin]).caption_keys
    assert keys[0] == keys[2] != keys[1]


@torch.no_grad()
def test_packed_pairs_are_embedded_as_if_each_were_alone(model):
    examples = [image_example(1), video_example(2), image_example(3, 1, 4, answer=9)]
    packed = model(pairs_of(model, [text_example(0), *examples]))
    for i, single in enumerate(examples):
        alone = model(pairs_of(model, [single]))
        # measured 1.6e-7
        torch.testing.assert_close(packed.images[i], alone.images[0], rtol=0, atol=2e-6)
        torch.testing.assert_close(packed.texts[i], alone.texts[0], rtol=0, atol=2e-6)
    assert (packed.images[0] - packed.images[1]).abs().max() > 1e-2


def test_without_pairs_every_parameter_gets_a_gradient_of_zero(model):
    output = model(pairs_of(model, [text_example(0), two_images_example(1)]))
    assert output.images.shape == output.texts.shape == (0, 32)
    (output.images.sum() + output.texts.sum()).backward()
    for name, parameter in model.named_parameters():
        if not name.startswith("temperature"):
            assert parameter.grad is not None, name
            assert not parameter.grad.any(), name
    model.zero_grad()


def test_a_paired_step_keeps_what_it_was_made_of(model):
    batch = collate([[image_example(1)]], pad_id=PAD_ID, merge_size=2)
    step = StepBatch(step=3, micro_batches=(batch,), tokens={"a": 5}, samples={"a": 1}, rows_hash=7)
    paired = PairedStep.from_step(step, OwnTokens(), model.blank()).to("cpu")
    assert (paired.step, paired.tokens, paired.rows_hash) == (3, {"a": 5}, 7)
    assert paired.num_tokens == batch.num_tokens


def test_a_batch_without_labels_is_refused(model):
    batch = collate([[image_example(1)]], pad_id=PAD_ID, merge_size=2)
    object.__setattr__(batch, "labels", None)
    with pytest.raises(ValueError, match="has no labels"):
        pair(batch, OwnTokens(), model.blank())


def test_parts_that_do_not_fit_are_named():
    with pytest.raises(
        ConfigError, match=r"text\.embed_dim and vision\.dim must be equal, got 48 and 32"
    ):
        build_model(*TINY, "text_encoder.tower.embed_dim=48")
    with pytest.raises(ValueError, match="does not divide into 3 heads"):
        AttentionPool(dim=32, mlp_dim=8, num_heads=3, attention=SDPAAttention())
    with pytest.raises(ValueError, match="must be positive"):
        Temperature(scale=0.0)


def test_every_encoder_of_the_recipe_fits():
    for size in ("qwen3vl_8b", "qwen3vl_2b"):
        model = build_model(f"model={size}", "stage=s_vision", "run_dir=none", device="meta")
        assert model.pool.dim == model.vision.dim == model.text.embed_dim
