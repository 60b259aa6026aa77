"""Next-token training."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from vlmkit.batch import Modality, StepBatch, VLMBatch
from vlmkit.language.layers import RouterStats
from vlmkit.losses.balancing import LoadBalancing
from vlmkit.losses.base import Loss, LossOutput, TokenScores
from vlmkit.models.qwen3vl import Qwen3VL
from vlmkit.training.group_totals import GroupTotals
from vlmkit.training.passes import Objective, Passes
from vlmkit.training.sections import Sections
from vlmkit.training.step_routing import StepRouting
from vlmkit.training.stepped_module import Guard, SteppedModule
from vlmkit.training.update import Update

log = logging.getLogger(__name__)


class VLMModule(SteppedModule):
    """Trains on the scored tokens of packed conversations.

    The loss of a step is divided once, by its denominator over all micro-batches and ranks, so the
    gradient does not depend on how the step is cut.
    """

    model: Qwen3VL

    def __init__(
        self,
        model: Qwen3VL,
        update: Update,
        loss: Loss,
        balancing: LoadBalancing | None = None,
        validation_names: Sequence[str] = (),
        source_names: Sequence[str] = (),
        guard: Guard | None = None,
        sections: Sections | None = None,
        seed: int = 0,
    ) -> None:
        """Keep the parts.

        Args:
            model: what is trained.
            update: how the gradient of a step becomes an update of the weights.
            loss: objective on scored tokens.
            balancing: keeps experts evenly used; None for dense models.
            validation_names: of the validation loaders, in order.
            source_names: of the training sources, in the order in which batches number them; each gets
                its own loss and counts in the log.
            guard: decides which steps are applied; None applies all.
            sections: told what takes time.
            seed: of what is random within a step.
        """
        super().__init__(model, update, guard, sections, seed)
        self.loss, self.balancing = loss, balancing
        self.validation_names = tuple(validation_names)
        self.source_names = tuple(source_names)
        self.passes: Passes | None = None  # None: one after the other
        self.num_empty_steps = 0
        self._by_source = self._by_modality = GroupTotals((), torch.device("cpu"))
        self.metrics = nn.ModuleDict(
            {
                name: nn.ModuleDict({"exact_match": MeanMetric(), "answer_nll": MeanMetric()})
                for name in self.validation_names
            }
        )

    def accumulate_gradient(self, batch: StepBatch) -> Tensor:
        """See `SteppedModule.accumulate_gradient`."""
        micro_batches = batch.micro_batches
        parts = (self.loss.denominator(micro) for micro in micro_batches)
        denominator = sum(parts, torch.zeros((), dtype=torch.float32, device=self.device))
        denominator = self.sum_over_samples(denominator)
        self._note_empty(batch, denominator)
        denominator = denominator.clamp(min=1e-8)
        most = self.most_micro_batches(batch)
        routing = self._count_assignments(micro_batches, most)
        total = torch.zeros(
            2, device=self.device, dtype=torch.float32
        )  # loss, and the part of it that is z-loss
        objective = Objective(
            loss=self.loss,
            denominator=denominator,
            routing=routing,
            averaged_over=self.ranks.averaged_over,
        )
        if self.passes is None:
            self._one_by_one(micro_batches, most, objective, total)
        else:
            with self.sections("backward"):
                for micro, result in self.passes(micro_batches, most, objective):
                    self._add(micro, result, total)
        loss, z_loss = self.sum_over_ranks(total) / denominator
        self._log_groups(batch)
        if routing is not None:
            self.log("train/balancing", self.sum_over_ranks(routing.total))
        self.log("train/z_loss", z_loss)
        return loss

    def _one_by_one(
        self, micro_batches: tuple[VLMBatch, ...], most: int, objective: Objective, total: Tensor
    ) -> None:
        """Forward and backward pass of each micro-batch."""
        for micro, counts in self.in_step_with_other_ranks(micro_batches, most):
            with self.sections("forward"):
                output = self.model(micro, read_out=self.loss)
                result: LossOutput = output.read_out
            share = objective.of_loss(result, counts)
            if counts:
                self._add(micro, result, total)
            if objective.routing is not None and output.router is not None:
                share = share + objective.of_routing(output.router, counts)
            with self.sections("backward"):
                self.manual_backward(share)

    def _add(self, micro: VLMBatch, result: LossOutput, total: Tensor) -> None:
        """Add a micro-batch to the sums of the step."""
        total[0] += result.numerator.detach()
        if result.z_numerator is not None:
            total[1] += result.z_numerator
        scored = result.token_nll, result.sample_ids
        self._by_source.add(micro, micro.source_ids, *scored)
        self._by_modality.add(micro, micro.modality_ids, *scored)

    def _note_empty(self, batch: StepBatch, denominator: Tensor) -> None:
        """A step without a scored token has loss 0 and gradient 0; count it, and say so."""
        if float(denominator) == 0:
            self.num_empty_steps += 1
            log.warning(
                "step %d has no scored token on any rank, so its gradient is zero (%d such steps so far): "
                "see what the samples look like with python -m vlmkit.inspect step=%d",
                batch.step,
                self.num_empty_steps,
                batch.step,
            )
        self.log("train/empty_steps", float(self.num_empty_steps))

    def on_fit_start(self) -> None:
        """Make the sums that the log is written from."""
        self._by_source = GroupTotals(self.source_names, self.device)
        self._by_modality = GroupTotals([kind.name.lower() for kind in Modality], self.device)

    def _log_groups(self, batch: StepBatch) -> None:
        """Loss by source and by modality, and tokens by source."""
        for totals in (self._by_source, self._by_modality):
            self.log_dict({f"train/{k}": v for k, v in totals.means(self.sum_over_ranks).items()})
        if self.source_names:
            mine = [float(batch.tokens.get(name, 0)) for name in self.source_names]
            tokens = self.sum_over_samples(torch.tensor(mine, device=self.device))
            named = zip(self.source_names, tokens, strict=True)
            self.log_dict({f"train/tokens/{name}": count for name, count in named})

    def _count_assignments(
        self, micro_batches: tuple[VLMBatch, ...], most: int
    ) -> StepRouting | None:
        """Of the whole step, where that takes a forward pass of its own."""
        if self.balancing is None:
            return None
        routing = StepRouting(self.balancing, self.sum_over_ranks, self.device)
        if (self.balancing.exact and most > 1) or self.passes is not None:
            own: RouterStats | None = None
            with torch.no_grad(), self.sections("forward"):
                for micro, counts in self.in_step_with_other_ranks(micro_batches, most):
                    if (stats := self.model(micro).router) is not None and counts:
                        own = stats if own is None else own + stats
            if own is not None:
                routing.count(own, 1)
            routing.is_complete = True
        return routing

    def validation_step(self, batch: StepBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score micro-batches; a sample is right when every token of its answer is.

        The most probable token at each place given the right prefix is what greedy decoding would
        write as long as it has been right so far: this is the exact match of greedy decoding.
        """
        metrics = self.metrics[self.validation_names[dataloader_idx]]
        for micro in batch.micro_batches:
            # None on ranks without the head
            scores: TokenScores | None = self.model(micro, read_out=self.loss.score).read_out
            sums = torch.zeros(3, micro.num_samples, dtype=torch.float32, device=self.device)
            if scores is not None:
                values = torch.stack(
                    [scores.nll, (~scores.correct).float(), torch.ones_like(scores.nll)]
                )
                sums.index_add_(1, scores.sample_ids, values)
            nll, wrong, count = self.ranks.sum_over_parts(sums)
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
