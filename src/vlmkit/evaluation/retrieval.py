"""Does a picture find its caption among all captions of a set, and the other way round?"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class RetrievalRecall(Metric):
    """Recall at 1 in both directions. Finding another's caption that reads the same is right.

    Args:
        chunk: queries at a time.
    """

    full_state_update = False
    images: list[Tensor]
    texts: list[Tensor]
    keys: list[Tensor]

    def __init__(self, chunk: int = 1024) -> None:
        super().__init__()
        self.chunk = chunk
        for name in ("images", "texts", "keys"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, images: Tensor, texts: Tensor, keys: Tensor) -> None:
        """Add pairs.

        Args:
            images: (pairs, dim), unit vectors.
            texts: (pairs, dim).
            keys: (pairs,) int64, equal where captions are.
        """
        self.images.append(images)
        self.texts.append(texts)
        self.keys.append(keys)

    def compute(self) -> dict[str, Tensor]:
        """`image_to_text`, `text_to_image` and `chance`, that of an answer drawn blindly; in 0..1.

        Without any pair all three are NaN.
        """
        images, texts = dim_zero_cat(self.images), dim_zero_cat(self.texts)
        keys = dim_zero_cat(self.keys)
        _, group, sizes = keys.unique(return_inverse=True, return_counts=True)
        return {
            "image_to_text": self._recall(images, texts, keys),
            "text_to_image": self._recall(texts, images, keys),
            "chance": (sizes[group] / len(keys)).mean(),
        }

    def _recall(self, queries: Tensor, answers: Tensor, keys: Tensor) -> Tensor:
        found = [(query @ answers.T).argmax(1) for query in queries.split(self.chunk) if len(query)]
        if not found:
            return torch.full((), torch.nan, device=queries.device)
        return (keys[torch.cat(found)] == keys).float().mean()
