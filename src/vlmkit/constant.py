"""Tensors that are fixed by construction, such as rotary frequencies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn


class Constant(nn.Module):
    """A tensor that follows its module between devices and never loses its values or its dtype.

    An ordinary buffer is rounded by `.to(torch.bfloat16)`, which ruins rotary angles at long range, and
    holds garbage after `to_empty`. This one is filled again from the host each time.
    """

    tensor: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self._values = values.tolist()
        self._dtype = values.dtype
        self.register_buffer("tensor", values.to("cpu"), persistent=False)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if not self.tensor.is_meta:
            self.tensor = torch.tensor(self._values, dtype=self._dtype, device=self.tensor.device)
        return self

    def forward(self) -> Tensor:
        """The tensor, on the device of the module."""
        return self.tensor
