"""The LightningModule of next-token training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric

from vlmkit.batch import StepBatch, VLMBatch
from vlmkit.losses.balancing import LoadBalancing
from vlmkit.losses.base import Loss
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.training.optim import weight_decay_groups
from vlmkit.training.source_totals import SourceTotals


class VLMModule(L.LightningModule):
    """Trains on the scored tokens of packed conversations.

    One call of `training_step` is one optimiser step: its batch holds all micro-batches of this rank, so
    that the loss is divided once, by the denominator of the whole step over all ranks. The gradient does
    not depend on how the step is cut, but for the balancing loss of experts, which is taken per
    micro-batch and averaged by tokens.
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
        source_names: Sequence[str] = (),
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
            source_names: of the training sources, in the order in which batches number them; each gets
                its own loss and counts in the log.
        """
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.loss = loss
        self.balancing = balancing
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.weight_decay, self.clip_norm = weight_decay, clip_norm
        self.validation_names = tuple(validation_names)
        self.source_names = tuple(source_names)
        self._per_source: SourceTotals | None = None
        self.metrics = nn.ModuleDict(
            {
                name: nn.ModuleDict({"exact_match": MeanMetric(), "answer_nll": MeanMetric()})
                for name in self.validation_names
            }
        )

    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        """One optimiser step over all micro-batches."""
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        assert not isinstance(optimizer, list)
        micro_batches = batch.micro_batches
        parts = (self.loss.denominator(micro) for micro in micro_batches)
        denominator = sum(parts, torch.zeros((), device=self.device))
        denominator = self.all_reduce(denominator, "sum").clamp(min=1e-8)
        num_tokens = max(batch.num_tokens, 1)
        total = torch.zeros((), device=self.device)
        balancing = torch.zeros((), device=self.device)
        if self._per_source is None:
            self._per_source = SourceTotals(self.source_names, self.device)
        per_source = self._per_source
        for micro, counts in self._in_step_with_other_ranks(batch):
            output = self.model(micro)
            result = self.loss(output.hidden, self.model.decoder.head_weight, micro)
            if counts:
                per_source.add(micro, result.token_nll)
            # data parallelism averages gradients over ranks: scale back to a sum
            objective = result.numerator * self.trainer.world_size / denominator
            total += result.numerator.detach() * counts
            if self.balancing is not None and output.router is not None:
                balance = self.balancing(output.router) * (micro.num_tokens / num_tokens)
                objective = objective + self.balancing.coefficient * balance
                balancing += balance.detach() * counts
            self.manual_backward(objective * counts)
        grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters(), self.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()  # type: ignore[union-attr]

        self.log("train/loss", self.all_reduce(total, "sum") / denominator)
        self.log("train/grad_norm", grad_norm)
        for key, value in per_source.means(batch, self.all_reduce).items():
            self.log(f"train/{key}", value)
        self.log("train/lr", optimizer.param_groups[0]["lr"])
        if self.balancing is not None:
            self.log("train/balancing", balancing)

    def _in_step_with_other_ranks(self, batch: StepBatch) -> Iterator[tuple[VLMBatch, int]]:
        """This rank's micro-batches, each with 1; then its last with 0 until the busiest rank is done.

        Each backward pass is a collective, so all ranks must make equally many.

        Raises:
            RuntimeError: ranks disagree about what the step holds.
        """
        micro_batches = batch.micro_batches
        most = len(micro_batches)
        if self.trainer.world_size > 1:
            mine = torch.tensor(
                [most, batch.rows_hash, -batch.rows_hash], dtype=torch.int64, device=self.device
            )
            most, largest, smallest = self.all_reduce(mine, "max").tolist()
            if largest != -smallest:
                raise RuntimeError(
                    f"step {batch.step}: the ranks have planned different rows, so samples would be lost "
                    "or doubled. A file that cannot be read everywhere, or not in time, is the usual "
                    "cause: compare the ranks' lists of skipped samples, or measure sizes once with "
                    "python -m vlmkit.stats write_sizes=true"
                )
        for i in range(most):
            yield micro_batches[min(i, len(micro_batches) - 1)], int(i < len(micro_batches))

    def validation_step(self, batch: StepBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score micro-batches; a sample is right when every token of its answer is.

        The most probable token at each place given the right prefix is what greedy decoding would
        write as long as it has been right so far: this is the exact match of greedy decoding.
        """
        metrics = self.metrics[self.validation_names[dataloader_idx]]
        for micro in batch.micro_batches:
            output = self.model(micro)
            scores = self.loss.score(output.hidden, self.model.decoder.head_weight, micro)
            per_sample = scores.nll.new_zeros(3, micro.num_samples)
            values = torch.stack(
                [scores.nll, (~scores.correct).float(), torch.ones_like(scores.nll)]
            )
            nll, wrong, count = per_sample.index_add(1, scores.sample_ids, values)
            metrics["exact_match"].update((wrong == 0)[count > 0].float())  # type: ignore[index]
            metrics["answer_nll"].update(nll[count > 0])  # type: ignore[index]

    def on_validation_epoch_end(self) -> None:
        """Log exact match and answer likelihood per validation source, and the mean over sources."""
        matches = []
        for name, metrics in self.metrics.items():
            for key, metric in metrics.items():  # type: ignore[operator]
                value = metric.compute()
                metric.reset()
                self.log(f"val/{name}/{key}", value)
                if key == "exact_match":
                    matches.append(value)
        if matches:
            self.log("val/exact_match", torch.stack(matches).mean())

    def all_reduce(self, value: Tensor, operation: str) -> Tensor:
        """Combine a value of all ranks by `sum` or `max`."""
        reduced: Tensor = self.trainer.strategy.reduce(value, reduce_op=operation)  # type: ignore[assignment]
        return reduced

    def configure_optimizers(self) -> Any:
        """The optimiser over decayed and spared parameters, and its schedule."""
        optimizer = self.make_optimizer(weight_decay_groups(self.model, self.weight_decay))
        scheduler = self.make_scheduler(optimizer, total_steps=self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}
