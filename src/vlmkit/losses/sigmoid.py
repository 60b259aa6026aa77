"""Pairwise sigmoid loss of SigLIP, with its gradients, in chunks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class PairwiseLoss:
    """Sums over pairs, and their gradients. Divide by the number of pictures of the step, once."""

    per_image: Tensor  # (images,) float32, summed over texts
    images: Tensor  # (images, dim) float32, gradient of the sum
    texts: Tensor  # (texts, dim)
    log_scale: Tensor  # ()
    bias: Tensor  # ()


class PairwiseSigmoid:
    """Sum of -log sigmoid(z * (exp(log_scale) * image . text + bias)) over all pairs (Zhai et al. 2023).

    z is 1 for a picture and its own caption and -1 for another. Where another picture's caption reads
    the same, it is no negative: by default such a pair is left out.

    Args:
        same_caption_label: z of a picture with another's caption that reads the same: 0 leaves the
            pair out, -1 is SigLIP, 1 counts it as right.
        chunk_texts: texts at a time; [images, texts] never exists as a whole.
    """

    def __init__(self, same_caption_label: float = 0.0, chunk_texts: int = 4096) -> None:
        if same_caption_label not in (-1, 0, 1):
            raise ValueError(f"same_caption_label is {same_caption_label}; it may be -1, 0 or 1")
        if chunk_texts < 1:
            raise ValueError(f"chunk_texts must be positive, got {chunk_texts}")
        self.same_caption_label, self.chunk_texts = same_caption_label, chunk_texts

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        texts: Tensor,
        keys: Tensor,
        first: int,
        log_scale: Tensor,
        bias: Tensor,
    ) -> PairwiseLoss:
        """Loss of some pictures against all texts, and the gradients of its sum.

        Gradients are made here and not by autograd: embeddings may come from other ranks, and from
        forward passes whose graphs are long gone (GradCache, Gao et al. 2021).

        Args:
            images: (images, dim), unit vectors.
            texts: (texts, dim), of all micro-batches and ranks.
            keys: (texts,) int64, equal where captions are.
            first: the text of image 0; that of image i is `first + i`.
            log_scale: () logarithm of the factor on cosines.
            bias: () added to logits.
        """
        with torch.autocast(images.device.type, enabled=False):
            images, texts = images.float(), texts.float()
            scale, shift = log_scale.float().exp(), bias.float()
            own = torch.arange(first, first + len(images), device=images.device)
            result = PairwiseLoss(
                per_image=images.new_zeros(len(images)),
                images=torch.zeros_like(images),
                texts=torch.zeros_like(texts),
                log_scale=images.new_zeros(()),
                bias=images.new_zeros(()),
            )
            for start in range(0, len(texts), self.chunk_texts):
                chunk = slice(start, start + self.chunk_texts)
                scaled = scale * images @ texts[chunk].T  # (images, chunk)
                same = keys[own, None] == keys[None, chunk]
                label = torch.where(same, self.same_caption_label, -1.0)
                numbers = torch.arange(start, start + scaled.shape[1], device=images.device)
                label = torch.where(own[:, None] == numbers, 1.0, label)
                margin = label * (scaled + shift)
                result.per_image.add_((F.softplus(-margin) * label.abs()).sum(1))
                slope = -label * torch.sigmoid(-margin)  # of each logit
                result.images.addmm_(slope, texts[chunk] * scale)
                result.texts[chunk] = slope.T @ (images * scale)
                result.log_scale.add_((slope * scaled).sum())
                result.bias.add_(slope.sum())
        return result
