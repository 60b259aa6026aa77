"""Contrastive training of the vision encoder on pictures with captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlmkit.batch import StepBatch
from vlmkit.evaluation.retrieval import RetrievalRecall
from vlmkit.language.captions import CaptionTokens
from vlmkit.losses.sigmoid import PairwiseLoss, PairwiseSigmoid
from vlmkit.models.image_text import ImageTextModel, PairEmbeddings
from vlmkit.models.pairs import PairedStep
from vlmkit.training.sections import Sections
from vlmkit.training.stepped_module import Guard, SteppedModule
from vlmkit.training.update import Update


class ContrastiveModule(SteppedModule):
    """Every picture of a step is held against every caption of the step, over micro-batches and ranks.

    Where a step has several micro-batches, all are embedded without gradient first, the loss and its
    gradients are made from the embeddings alone, and each micro-batch is embedded again to take its
    gradient on to the weights (GradCache, Gao et al. 2021). So the gradient does not depend on how the
    step is cut, for a second forward pass. Both passes must give the same: towers with dropout or
    stochastic depth are not for several micro-batches.
    """

    model: ImageTextModel

    def __init__(
        self,
        model: ImageTextModel,
        update: Update,
        loss: PairwiseSigmoid,
        captions: CaptionTokens,
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
            loss: objective on pairs.
            captions: scored tokens of a sample -> what the text tower reads.
            validation_names: of the validation loaders, in order.
            source_names: of the training sources, in the order in which batches number them; each gets
                its own loss and count in the log.
            guard: decides which steps are applied; None applies all.
            sections: told what takes time.
            seed: of what is random within a step.
        """
        super().__init__(model, update, guard, sections, seed)
        self.loss, self.captions = loss, captions
        self.validation_names, self.source_names = tuple(validation_names), tuple(source_names)
        self.metrics = nn.ModuleDict({name: RetrievalRecall() for name in self.validation_names})
        self._blank = model.blank()

    def transfer_batch_to_device(
        self, batch: StepBatch, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Read pairs while everything is still on the host; only they are moved."""
        paired = PairedStep.from_step(batch, self.captions, self._blank)
        return super().transfer_batch_to_device(paired, device, dataloader_idx)

    def accumulate_gradient(self, batch: StepBatch) -> Tensor:
        """See `SteppedModule.accumulate_gradient`."""
        assert isinstance(batch, PairedStep)
        most = self.most_micro_batches(batch)
        with torch.set_grad_enabled(most == 1), self.sections("forward"):
            embedded = [
                self.model(pairs)
                for pairs, counts in self.in_step_with_other_ranks(batch.pairs, most)
                if counts or most > 1
            ][: len(batch.pairs)]
        result, num_pairs = self._loss_of(batch, embedded)

        pieces = zip(
            *(part.split(_sizes(batch)) for part in (result.images, result.texts)), strict=True
        )
        gradients = [PairEmbeddings(images=images, texts=texts) for images, texts in pieces]
        for i, (pairs, counts) in enumerate(self.in_step_with_other_ranks(batch.pairs, most)):
            with self.sections("forward"):
                output = embedded[0] if most == 1 else self.model(pairs)
            gradient = gradients[min(i, len(gradients) - 1)]
            objective = (output.images * gradient.images).sum()
            objective = objective + (output.texts * gradient.texts).sum()
            # gradients of the temperature are of the whole step: they count once
            temperature = self.model.temperature
            whole = temperature.log_scale * result.log_scale + temperature.bias * result.bias
            objective = (objective * counts + whole * int(i == 0)) / num_pairs
            with self.sections("backward"):
                # data parallelism averages gradients over ranks: scale back to a sum
                self.manual_backward(objective * self.ranks.averaged_over)
        return self._log_sums(batch, result.per_image)

    def _loss_of(
        self, batch: PairedStep, embedded: Sequence[PairEmbeddings]
    ) -> tuple[PairwiseLoss, Tensor]:
        """Loss of this rank's pictures with gradients for its own embeddings, and all ranks' pairs."""
        images = torch.cat([part.images.detach() for part in embedded])
        texts = torch.cat([part.texts.detach() for part in embedded])
        keys = torch.cat([pairs.caption_keys for pairs in batch.pairs])
        counts = self._counts(len(images))
        first = sum(counts[: self.global_rank])
        temperature = self.model.temperature
        with self.sections("collective"):
            all_texts, all_keys = (self._gathered(part, counts) for part in (texts, keys))
        result = self.loss(
            images, all_texts, all_keys, first, temperature.log_scale, temperature.bias
        )
        texts_gradient = self.sum_over_ranks(result.texts)[first : first + len(images)]
        own = PairwiseLoss(
            per_image=result.per_image,
            images=result.images,
            texts=texts_gradient,
            log_scale=result.log_scale,
            bias=result.bias,
        )
        return own, torch.tensor(float(max(sum(counts), 1)), device=self.device)

    def _counts(self, mine: int) -> list[int]:
        """Pairs of each rank."""
        if self.trainer.world_size == 1:
            return [mine]
        counts = self.all_gather(torch.tensor([mine], device=self.device))
        found: list[int] = torch.as_tensor(counts).flatten().tolist()
        return found

    def _gathered(self, mine: Tensor, counts: list[int]) -> Tensor:
        """Rows of all ranks, in their order; `counts` says how many each has."""
        if len(counts) == 1:
            return mine
        padded = mine.new_zeros(max(counts), *mine.shape[1:])
        padded[: len(mine)] = mine
        gathered = torch.as_tensor(self.all_gather(padded))
        return torch.cat([rows[:count] for rows, count in zip(gathered, counts, strict=True)])

    def _log_sums(self, batch: PairedStep, per_image: Tensor) -> Tensor:
        """Log counts, temperature, and the loss of each source; return the mean over pictures."""
        last = len(self.source_names)  # pairs of unknown source
        sources = torch.cat([pairs.source_ids for pairs in batch.pairs]) % (last + 1)
        rows = torch.stack([per_image, torch.ones_like(per_image)], dim=1)
        by_source = rows.new_zeros(last + 1, 2).index_add(0, sources, rows)
        left_out = [[pairs.num_unpaired, pairs.num_cut] for pairs in batch.pairs]
        totals = torch.tensor(left_out, dtype=torch.float32, device=self.device).sum(0)
        table = self.sum_over_ranks(torch.cat([by_source, totals[None]]))
        loss, num_pairs = table[:-1].sum(0)
        self.log("train/pairs", num_pairs)
        self.log("train/unpaired", table[-1, 0])
        self.log("train/cut_captions", table[-1, 1])
        self.log("train/logit_scale", self.model.temperature.log_scale.detach().float().exp())
        self.log("train/logit_bias", self.model.temperature.bias.detach().float())
        for name, (value, count) in zip(self.source_names, table[:last], strict=True):
            self.log(f"train/loss/{name}", value / count)  # NaN where the source did not come up
            self.log(f"train/pairs/{name}", count)
        return loss / num_pairs.clamp(min=1)

    def validation_step(self, batch: PairedStep, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Embed held-out pairs."""
        metric = self.metrics[self.validation_names[dataloader_idx]]
        for pairs in batch.pairs:
            output = self.model(pairs)
            metric.update(output.images, output.texts, pairs.caption_keys)  # type: ignore[operator]

    def on_validation_epoch_end(self) -> None:
        """Log recall at 1 per source and direction beside chance, and the mean over all."""
        recalls = []
        for name, metric in self.metrics.items():
            values = metric.compute()  # type: ignore[operator]
            metric.reset()  # type: ignore[operator]
            for key in ("image_to_text", "text_to_image"):
                self.log(f"val/{name}/{key}_recall_at_1", values[key])
                recalls.append(values[key])
            self.log(f"val/{name}/chance", values["chance"])
        if recalls:
            self.log("val/recall_at_1", torch.stack(recalls).mean())


def _sizes(batch: PairedStep) -> list[int]:
    return [pairs.num_pairs for pairs in batch.pairs]
