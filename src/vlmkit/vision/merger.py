"""Neighbouring patches -> one visual token of decoder width."""

from __future__ import annotations

from torch import Tensor, nn

from vlmkit.initialization import init_parameters_


class PatchMerger(nn.Module):
    """A window of patches is concatenated and mapped by an MLP with exact GELU.

    The main merger normalises patches one by one; DeepStack mergers normalise the concatenated window
    (Qwen3-VL's "post-shuffle" norm).
    """

    def __init__(
        self,
        vision_dim: int,
        hidden_dim: int,
        merge_size: int = 2,
        norm_after_grouping: bool = False,
    ) -> None:
        super().__init__()
        self.vision_dim, self.hidden_dim, self.merge_size = vision_dim, hidden_dim, merge_size
        self.norm_after_grouping = norm_after_grouping
        window_dim = vision_dim * merge_size**2
        self.norm = nn.LayerNorm(window_dim if norm_after_grouping else vision_dim, eps=1e-6)
        self.fc1 = nn.Linear(window_dim, window_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(window_dim, hidden_dim)

    def reset_parameters(self) -> None:
        """Fill the parameters with initial values."""
        init_parameters_(self)

    def forward(self, patches: Tensor) -> Tensor:
        """(patches, vision_dim), windows contiguous -> (visual_tokens, hidden_dim)."""
        if self.norm_after_grouping:
            windows = self.norm(self._group(patches))
        else:
            windows = self._group(self.norm(patches))
        return self.fc2(self.act(self.fc1(windows)))

    def _group(self, patches: Tensor) -> Tensor:
        return patches.reshape(-1, self.vision_dim * self.merge_size**2)
