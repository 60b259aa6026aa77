"""torch.compile, block by block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vlmkit.attention.base import Attention
from vlmkit.training.blocks import decoder_layers, vision_blocks


class BlockCompiler:
    """Compiles each decoder layer and each vision block for training; names of parameters stay.

    Attention stays outside: it is told segment lengths as Python integers, which change with every batch
    and would each time compile anew. Passes without gradients (validation, generation) run as they are.
    With torch 2.11, experts compile in bfloat16 only.
    """

    def __init__(self, backend: str = "inductor", mode: str | None = None) -> None:
        """Keep the settings.

        Args:
            backend: of torch.compile.
            mode: of torch.compile, such as `max-autotune-no-cudagraphs`.
        """
        self.options = {"backend": backend, "mode": mode, "dynamic": True}

    def __call__(self, model: nn.Module) -> None:
        """Change the model's blocks in place."""
        for block in (*decoder_layers(model), *vision_blocks(model)):
            for module in block.modules():
                attention = getattr(module, "attention", None)
                if callable(attention) and not isinstance(attention, nn.Module):
                    module.attention = _Uncompiled(attention)  # type: ignore[assignment]
            block.forward = _CompiledForward(block.forward, self.options)  # type: ignore[method-assign]


class _Uncompiled:
    """An attention back end that the compiler calls and does not look into."""

    def __init__(self, attention: Attention) -> None:
        self.attention = attention

    @torch.compiler.disable
    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.attention(*args, **kwargs)


class _CompiledForward:
    """A block's forward, compiled where gradients are taken. Copies compile for themselves."""

    def __init__(self, forward: Callable[..., Any], options: dict[str, Any]) -> None:
        self._forward, self._options = forward, options
        self._compiled = torch.compile(forward, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward = self._compiled if torch.is_grad_enabled() else self._forward
        return forward(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._forward, self._options)
