"""The fused kernel of the liger-kernel package, where a user has installed it."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

from vlmkit.errors import ConfigError
from vlmkit.losses.linear_cross_entropy import OnePass


class LigerKernel:
    """Liger's fused linear cross-entropy (Hsu et al. 2024, arXiv 2410.10989); CUDA only.

    It cuts the rows by a rule of its own, so that `chunk_tokens` holds for scoring only. The z-loss of a
    row comes back in the dtype of the rows; with bfloat16 the logged losses carry that rounding, the
    gradients do not.

    Raises:
        ConfigError: the package is missing, or older than 0.8.5, which cannot weigh tokens.
    """

    def __init__(self) -> None:
        try:
            from liger_kernel.ops.fused_linear_cross_entropy import (
                fused_linear_cross_entropy_forward,
            )
        except ImportError as error:
            raise ConfigError(
                "loss/kernel=liger needs the liger-kernel package: pip install 'vlmkit[liger]'; "
                "loss/kernel=torch computes the same without it"
            ) from error
        if (
            "token_grad_output"
            not in inspect.signature(fused_linear_cross_entropy_forward).parameters
        ):
            raise ConfigError(
                "loss/kernel=liger needs liger-kernel 0.8.5 or newer, which weighs single tokens: "
                "pip install -U 'vlmkit[liger]', or take loss/kernel=torch"
            )
        self._forward = fused_linear_cross_entropy_forward

    def __call__(
        self,
        rows: Tensor,
        head: Tensor,
        targets: Tensor,
        weights: Tensor,
        *,
        z_coefficient: float,
        chunk_tokens: int,
        needs_rows: bool,
        needs_head: bool,
    ) -> OnePass:
        """See `vlmkit.losses.linear_cross_entropy.LinearCrossEntropyKernel`.

        Raises:
            ConfigError: the tensors are not on a CUDA device.
        """
        if rows.device.type != "cuda":
            raise ConfigError(
                f"loss/kernel=liger runs on CUDA, the model is on {rows.device.type}; "
                "take loss/kernel=torch"
            )
        return self._one_pass(rows, head, targets, weights, z_coefficient, needs_rows, needs_head)

    def _one_pass(
        self,
        rows: Tensor,
        head: Tensor,
        targets: Tensor,
        weights: Tensor,
        z_coefficient: float,
        needs_rows: bool,
        needs_head: bool,
    ) -> OnePass:
        loss, z_loss, _, _, grad_rows, grad_head, _ = self._forward(
            rows.contiguous(),
            head,
            targets,
            lse_square_scale=z_coefficient,
            reduction="none",
            return_z_loss=True,
            accum_dtype=torch.float32,
            token_grad_output=weights,
            compute_gradients=needs_rows or needs_head,
            weight_requires_grad=needs_head,
        )
        z_loss = z_loss.float()
        return OnePass(
            nll=loss - z_loss,
            z_loss=z_loss,
            grad_rows=grad_rows if needs_rows else None,
            grad_head=grad_head,
        )
