"""The LightningModule of next-token training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from vlmkit.batch import VLMBatch
from vlmkit.losses.balancing import LoadBalancing
from vlmkit.losses.base import Loss
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.training.optim import weight_decay_groups


class VLMModule(L.LightningModule):
    """Trains on the scored tokens of packed conversations.

    One call of `training_step` is one optimiser step: its batch is the list of all micro-batches of
    this rank, so that the loss is divided once, by the denominator of the whole step over all ranks.
    The gradient does not depend on how the step is cut.
    """

    def __init__(
        self,
        model: Qwen3VL,
        loss: Loss,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler],
        balancing: LoadBalancing | None = None,
        weight_decay: float = 0.0,
        clip_norm: float = 1.0,
        validation_names: Sequence[str] = (),
    ) -> None:
        """Keep the parts.

        Args:
            model: what is trained.
            loss: objective on scored tokens.
            optimizer: makes the optimiser from parameter groups.
            scheduler: makes the schedule from the optimiser and `total_steps`.
            balancing: keeps experts evenly used; None for dense models.
            weight_decay: of matrices.
            clip_norm: largest norm of the gradient over all parameters.
            validation_names: of the validation loaders, in order.
        """
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.loss = loss
        self.balancing = balancing
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.weight_decay, self.clip_norm = weight_decay, clip_norm
        self.validation_names = tuple(validation_names)
        self._scores: defaultdict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)

    def training_step(self, batch: list[VLMBatch], batch_idx: int) -> None:
        """One optimiser step over all micro-batches."""
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        assert not isinstance(optimizer, list)
        denominator = sum((self.loss.denominator(micro) for micro in batch), torch.zeros(()))
        denominator = self.all_reduce_sum(denominator.to(self.device))
        total = torch.zeros((), device=self.device)
        auxiliary = torch.zeros((), device=self.device)
        for micro in batch:
            output = self.model(micro)
            result = self.loss(output.hidden, self.model.decoder.head_weight, micro)
            # data parallelism averages gradients over ranks: scale back to a sum
            share = result.numerator * self.trainer.world_size / denominator.clamp(min=1e-8)
            total += result.numerator.detach()
            if self.balancing is not None and output.router is not None:
                balance = self.balancing(output.router) / len(batch)
                share = share + self.balancing.coefficient * balance
                auxiliary += balance.detach()
            self.manual_backward(share)
        grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters(), self.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()  # type: ignore[union-attr]

        self.log("train/loss", self.all_reduce_sum(total) / denominator.clamp(min=1e-8))
        self.log("train/grad_norm", grad_norm)
        self.log("train/lr", optimizer.param_groups[0]["lr"])
        if self.balancing is not None:
            self.log("train/balancing", auxiliary)

    def validation_step(self, batch: VLMBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score a micro-batch; a sample is right when every token of its answer is.

        The most probable token at each place given the right prefix is what greedy decoding would
        write as long as it has been right so far: this is the exact match of greedy decoding.
        """
        output = self.model(batch)
        scores = self.loss.score(output.hidden, self.model.decoder.head_weight, batch)
        nll = scores.nll.new_zeros(batch.num_samples).index_add(0, scores.sample_ids, scores.nll)
        wrong = torch.zeros_like(nll).index_add(0, scores.sample_ids, (~scores.correct).float())
        counts = torch.zeros_like(nll).index_add(0, scores.sample_ids, torch.ones_like(scores.nll))
        name = self.validation_names[dataloader_idx]
        self._scores[name].append(((wrong == 0)[counts > 0].float(), nll[counts > 0]))

    def on_validation_epoch_end(self) -> None:
        """Log exact match and answer likelihood per validation source, and the mean over sources."""
        matches = []
        for name, parts in self._scores.items():
            match = torch.cat([part[0] for part in parts])
            nll = torch.cat([part[1] for part in parts])
            totals = self.all_reduce_sum(
                torch.stack([match.sum(), nll.sum(), match.new_tensor(len(match))])
            )
            matches.append(totals[0] / totals[2])
            self.log(f"val/{name}/exact_match", matches[-1])
            self.log(f"val/{name}/answer_nll", totals[1] / totals[2])
        if matches:
            self.log("val/exact_match", torch.stack(matches).mean())
        self._scores.clear()

    def all_reduce_sum(self, value: Tensor) -> Tensor:
        """Sum over ranks."""
        reduced: Tensor = self.trainer.strategy.reduce(value, reduce_op="sum")  # type: ignore[assignment]
        return reduced

    def configure_optimizers(self) -> Any:
        """The optimiser over decayed and spared parameters, and its schedule."""
        optimizer = self.make_optimizer(weight_decay_groups(self.model, self.weight_decay))
        scheduler = self.make_scheduler(optimizer, total_steps=self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}
