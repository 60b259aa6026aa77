"""The loss that SigLIP's paper writes, and its gradients."""

import pytest
import torch
from torch.nn import functional as F

from vlmkit.losses.sigmoid import PairwiseSigmoid

KEYS = torch.tensor([3, 7, 7, 9, 3, 11, 12])


def embeddings():
    torch.manual_seed(0)
    images, texts = (F.normalize(torch.randn(7, 5), dim=-1) for _ in range(2))
    log_scale, bias = torch.tensor(1.3), torch.tensor(-2.0)
    return [part.requires_grad_() for part in (images, texts, log_scale, bias)]


def published(images, texts, log_scale, bias, same_caption_label):
    """Algorithm 1 of the paper (arXiv 2303.15343), pair by pair and without its final mean."""
    total = torch.zeros(())
    for i, image in enumerate(images):
        for j, text in enumerate(texts):
            same = KEYS[i] == KEYS[j]
            label = 1 if i == j else (same_caption_label if same else -1)
            if label:
                total = total - F.logsigmoid(label * (log_scale.exp() * image @ text + bias))
    return total


@pytest.mark.parametrize("same_caption_label", [0, -1, 1])
@pytest.mark.parametrize("chunk_texts", [2, 100])
def test_loss_and_gradients_equal_those_of_the_paper(same_caption_label, chunk_texts):
    parts = embeddings()
    expected = published(*parts, same_caption_label)
    gradients = torch.autograd.grad(expected, parts)
    images, texts, log_scale, bias = parts
    result = PairwiseSigmoid(same_caption_label, chunk_texts)(
        images, texts, KEYS, 0, log_scale, bias
    )
    torch.testing.assert_close(result.per_image.sum(), expected.detach(), rtol=1e-6, atol=0)
    ours = (result.images, result.texts, result.log_scale, result.bias)
    for mine, theirs in zip(ours, gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)  # measured 3.8e-6, of sums


def test_pictures_may_be_given_in_parts():
    images, texts, log_scale, bias = embeddings()
    loss = PairwiseSigmoid()
    whole = loss(images, texts, KEYS, 0, log_scale, bias)
    first = loss(images[:3], texts, KEYS, 0, log_scale, bias)
    rest = loss(images[3:], texts, KEYS, 3, log_scale, bias)
    for name in ("per_image", "images"):
        joined = torch.cat([getattr(first, name), getattr(rest, name)])
        torch.testing.assert_close(joined, getattr(whole, name), rtol=0, atol=1e-6)
    for name in ("texts", "log_scale", "bias"):
        added = getattr(first, name) + getattr(rest, name)
        torch.testing.assert_close(added, getattr(whole, name), rtol=0, atol=2e-6)


def test_nothing_to_compare_gives_zero():
    _, _, log_scale, bias = embeddings()
    none = torch.zeros(0, 5)
    result = PairwiseSigmoid()(none, none, KEYS[:0], 0, log_scale, bias)
    assert result.per_image.sum() == result.log_scale == result.bias == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"same_caption_label": 0.5}, "same_caption_label is 0.5"),
        ({"chunk_texts": 0}, "chunk_texts must be positive"),
    ],
)
def test_bad_values_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        PairwiseSigmoid(**arguments)
