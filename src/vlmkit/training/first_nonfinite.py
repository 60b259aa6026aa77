"""Where the first number arises that is not finite."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class FirstNonFinite:
    """Watches the parameters, the outputs and the gradients of all modules within a `with` block.

    Attributes:
        found: the first module or parameter, and whether it was its value or its gradient.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.found: str | None = None
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        for name, parameter in self.model.named_parameters():
            self._note(f"the weight {name}", parameter.detach())
        for name, module in self.model.named_modules():
            if name:
                self._watch(name, module)
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()

    def _watch(self, name: str, module: nn.Module) -> None:
        def after(module: nn.Module, arguments: Any, output: Any) -> None:
            for tensor in output if isinstance(output, tuple) else (output,):
                if isinstance(tensor, Tensor):
                    self._note(f"the output of {name}", tensor.detach())
                    if tensor.requires_grad:
                        tensor.register_hook(
                            lambda grad: self._note(f"the gradient of the output of {name}", grad)
                        )

        self._handles.append(module.register_forward_hook(after))

    def _note(self, where: str, tensor: Tensor) -> None:
        if self.found is None and tensor.is_floating_point() and not torch.isfinite(tensor).all():
            self.found = where
