"""Cross-entropy where each rank of a group holds some rows of the head."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.tensor import DTensor

from vlmkit.batch import VLMBatch
from vlmkit.errors import ConfigError
from vlmkit.losses.base import Loss, LossOutput, TokenScores
from vlmkit.losses.cross_entropy import CrossEntropy
from vlmkit.losses.linear_cross_entropy import OnePass, TorchKernel
from vlmkit.training.parallel.meshes import Meshes


class _Logits(NamedTuple):
    """Of one chunk of rows. What speaks of the whole vocabulary is equal on all ranks."""

    own: Tensor  # (chunk, own vocabulary) float32
    largest: Tensor  # (chunk,)
    log_z: Tensor  # (chunk,) log of the sum of exponentials
    of_target: Tensor  # (chunk,)
    target: Tensor  # (chunk,) int64, column of the target among our own; 0 where it is another's
    is_own: Tensor  # (chunk,) bool


class VocabParallelKernel:
    """`TorchKernel` over a vocabulary that is divided over ranks: see `LinearCrossEntropyKernel`.

    `head` is this rank's rows; `rows`, `targets` and `weights` are the same on all ranks of the group.
    The gradient of `rows` is that of the whole vocabulary, the gradient of `head` that of the own rows.
    Two reductions of a few numbers per row and chunk, one of the gradient of all rows.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group

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
        """See `LinearCrossEntropyKernel`."""
        nll = torch.empty(len(rows), device=rows.device, dtype=torch.float32)
        z_loss = torch.zeros_like(nll)
        grad_rows = torch.empty_like(rows) if needs_rows else None
        grad_head = torch.zeros_like(head, dtype=torch.float32) if needs_head else None
        for start in range(0, len(rows), chunk_tokens):
            piece = slice(start, start + chunk_tokens)
            row = rows[piece]
            logits = self.logits(row, head, targets[piece])
            nll[piece] = logits.log_z - logits.of_target
            if z_coefficient:
                z_loss[piece] = z_coefficient * logits.log_z**2
            if not (needs_rows or needs_head):
                continue
            grad = logits.own.sub_(logits.log_z[:, None]).exp_()
            if z_coefficient:
                grad *= (1 + 2 * z_coefficient * logits.log_z)[:, None]
            grad.scatter_add_(1, logits.target[:, None], -logits.is_own.to(grad.dtype)[:, None])
            grad = (grad * weights[piece, None]).to(rows.dtype)
            if grad_rows is not None:
                grad_rows[piece] = grad @ head
            if grad_head is not None:
                grad_head += grad.T @ row
            del logits, grad  # before the next chunk's logits
        if grad_rows is not None:
            dist.all_reduce(grad_rows, group=self.group)
        return OnePass(nll=nll, z_loss=z_loss, grad_rows=grad_rows, grad_head=grad_head)

    def logits(self, row: Tensor, head: Tensor, target: Tensor) -> _Logits:
        """Own logits of a chunk, and what the softmax needs of the others'.

        Args:
            row: (chunk, dim).
            head: (own vocabulary, dim).
            target: (chunk,) int64, among the whole vocabulary.
        """
        own = (row @ head.T).float()
        largest = own.amax(-1)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self.group)
        local = target - self.first(head)
        is_own = (local >= 0) & (local < len(head))
        local = torch.where(is_own, local, 0)
        of_target = own.gather(1, local[:, None]).squeeze(1) * is_own
        sums = torch.stack([(own - largest[:, None]).exp_().sum(-1), of_target])
        dist.all_reduce(sums, group=self.group)
        return _Logits(own, largest, largest + sums[0].log(), sums[1], local, is_own)

    def first(self, head: Tensor) -> int:
        """Token id of the first row of `head`; all ranks have equally many."""
        return len(head) * dist.get_rank(self.group)


class VocabParallelCrossEntropy(CrossEntropy):
    """`CrossEntropy` on a head whose rows are divided over `group`.

    Every rank of the group is given the same hidden states and the same batch, and gets the whole loss.
    """

    def __init__(self, loss: CrossEntropy, group: dist.ProcessGroup) -> None:
        """Take over the parts of `loss`, for which `check_loss` has been called."""
        kernel = VocabParallelKernel(group)
        super().__init__(
            loss.weighting,
            loss.chunk_tokens,
            unit=loss.unit,
            kernel=kernel,
            z_coefficient=loss.z_coefficient,
        )
        self.divided = kernel

    def forward(
        self,
        hidden: Tensor,
        head_weight: Tensor,
        batch: VLMBatch,
        weights: Tensor | None = None,
    ) -> LossOutput:
        """See `CrossEntropy.forward`; `head_weight` is a DTensor over the group, or this rank's rows."""
        return super().forward(hidden, _own_rows(head_weight), batch, weights)

    @torch.no_grad()
    def score(self, hidden: Tensor, head_weight: Tensor, batch: VLMBatch) -> TokenScores:
        """See `Loss.score`; of equal logits the lowest token id counts as the most probable."""
        head = _own_rows(head_weight)
        rows, targets, sample_ids = self.scored(hidden, batch)
        chunk = self.chunk_for(head)
        nll, correct = [rows.new_zeros(0, dtype=torch.float32)], [targets.new_zeros(0).bool()]
        for row, target in zip(rows.split(chunk), targets.split(chunk), strict=True):
            if not len(row):  # split of nothing is one empty piece
                continue
            logits = self.divided.logits(row, head, target)
            nll.append(logits.log_z - logits.of_target)
            value, best = logits.own.max(-1)
            best = best + self.divided.first(head)
            best = torch.where(value == logits.largest, best, torch.iinfo(best.dtype).max)
            dist.all_reduce(best, op=dist.ReduceOp.MIN, group=self.divided.group)
            correct.append(best == target)
        return TokenScores(nll=torch.cat(nll), correct=torch.cat(correct), sample_ids=sample_ids)

    def scored(self, hidden: Tensor, batch: VLMBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden rows, targets and samples at scored positions.

        Raises:
            ValueError: the batch was made for generation.
        """
        index, labels, samples = batch.scored_index, batch.labels, batch.sample_ids
        if index is None or labels is None or samples is None:
            raise ValueError("the batch has no labels: this one was made for generation")
        return hidden.flatten(0, 1)[index], labels.flatten()[index], samples.flatten()[index]


def check_loss(loss: Loss, tensor: int) -> None:
    """Make sure that the vocabulary of a loss can be divided over `tensor` ranks.

    Raises:
        ConfigError: the loss, or its kernel, knows no divided vocabulary.
    """
    if tensor == 1:
        return
    if type(loss) is not CrossEntropy:
        raise ConfigError(
            f"{type(loss).__name__} knows no vocabulary divided over parallel.tensor={tensor} ranks; "
            "take CrossEntropy, or parallel.tensor=1"
        )
    if not isinstance(loss.kernel, TorchKernel):
        raise ConfigError(
            f"loss/kernel={type(loss.kernel).__name__} needs the whole vocabulary on each rank; "
            "with parallel.tensor > 1 take loss/kernel=torch"
        )


def vocab_parallel(loss: Loss, meshes: Meshes) -> Loss:
    """The loss as it must be with `apply_tensor_parallel`; unchanged where nothing is divided.

    The training module calls this once: `module.loss = vocab_parallel(module.loss, meshes)`. Each rank
    of a tensor group then gets the whole loss of its micro-batch. Sums for the log and the denominator go
    over `meshes.tokens`, never over all ranks: tensor ranks would count the same tokens again.

    Raises:
        ConfigError: see `check_loss`.
    """
    if meshes.layout.tensor == 1:
        return loss
    check_loss(loss, meshes.layout.tensor)
    assert isinstance(loss, CrossEntropy)
    return VocabParallelCrossEntropy(loss, meshes.dense["tensor"].get_group())


def _own_rows(head_weight: Tensor) -> Tensor:
    return head_weight.to_local() if isinstance(head_weight, DTensor) else head_weight
