"""What went wrong in a step, written so that the step can be taken again."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlmkit.batch import Member, StepBatch
from vlmkit.checkpoint.run_folder import write_atomically
from vlmkit.errors import CheckpointError, UserError

logger = logging.getLogger(__name__)

_VERSION = 1
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class IncidentError(UserError):
    """A file is not an incident; names it and says why."""


@dataclass(frozen=True, kw_only=True)
class MicroBatchDigest:
    """SHA-256 of what entered the model: tokens, and pixels as patches (None: there were none)."""

    input_ids: str
    patches: str | None


@dataclass(frozen=True, kw_only=True)
class Incident:
    """A step that was not finite, or a spike, as one rank has seen it.

    Attributes:
        step: its number.
        reason: of the verdict.
        loss: over all ranks.
        grad_norm: before clipping, over all components.
        grad_norms: by component.
        rank: who writes.
        world_size: how many there are.
        seed: of the run; what is random in a step follows from it, the step and the rank.
        data_state: where the order of the data stood before the step, plain values.
        samples: of the step on this rank.
        digests: one per micro-batch of this rank, to tell whether a replay has the same data.
        weights: before the step, relative to the file of the incident; None: not kept.
    """

    step: int
    reason: str
    loss: float
    grad_norm: float
    grad_norms: Mapping[str, float]
    rank: int
    world_size: int
    seed: int
    data_state: Mapping[str, Any]
    samples: Sequence[Member] = field(default=())
    digests: Sequence[MicroBatchDigest] = field(default=())
    weights: str | None = None


def digests(batch: StepBatch) -> list[MicroBatchDigest]:
    """Of each micro-batch."""
    return [
        MicroBatchDigest(
            input_ids=tensor_digest(micro.input_ids),
            patches=None if micro.vision is None else tensor_digest(micro.vision.patches),
        )
        for micro in batch.micro_batches
    ]


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of shape, type and exact values."""
    plain = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{tuple(plain.shape)} {plain.dtype}".encode())
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class IncidentLog:
    """Writes incidents of a run, `incidents/step-00000123-rank0.json` each. Every rank has one.

    What cannot be written is a warning: training goes on.

    Args:
        folder: of the run.
        keep_weights: how many times weights are kept.
        keep: incidents that are written at most; the others are only counted.
    """

    def __init__(self, folder: str | Path, keep_weights: int = 2, keep: int = 200) -> None:
        if keep_weights < 0 or keep < 0:
            raise ValueError(
                f"keep_weights is {keep_weights} and keep {keep}; they must not be negative"
            )
        self.folder = Path(folder) / "incidents"
        self.keep_weights, self.keep = keep_weights, keep
        self.total, self.num_weights = 0, 0

    def record(
        self, incident: Incident, save_weights: Callable[[Path], object] | None = None
    ) -> Path | None:
        """Write an incident, before the optimiser touches the weights.

        Args:
            incident: without `weights`.
            save_weights: writes the weights to a path without suffix and returns the path that it has
                written, or None for that very path. Ranks call it equally often, so it may be
                collective.

        Returns:
            The file; None if there are `keep` already, or it could not be written.
        """
        self.total += 1
        if self.total > self.keep:
            return None
        name = f"step-{incident.step:08d}"
        path = self.folder / f"{name}-rank{incident.rank}.json"
        weights: str | None = None
        if save_weights is not None and self.num_weights < self.keep_weights:
            weights = self._keep(self.folder / f"{name}-weights", save_weights)
        content = {"version": _VERSION, **asdict(replace(incident, weights=weights))}
        text = json.dumps(_worded(content), indent=2, ensure_ascii=False, allow_nan=False)
        try:
            write_atomically(path, text.encode())
        except OSError as error:
            logger.warning("the incident of step %d could not be written: %s", incident.step, error)
            return None
        return path

    def _keep(self, target: Path, save_weights: Callable[[Path], object]) -> str | None:
        """Name of what was written; None if there was no room, say."""
        self.num_weights += 1
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            written = save_weights(target)
        except (OSError, CheckpointError) as error:
            logger.warning("weights are not kept in %s: %s", target, error)
            return None
        return Path(written if isinstance(written, str | Path) else target).name

    def state_dict(self) -> dict[str, int]:
        """Counts, so that a resumed run keeps to the limits."""
        return {"total": self.total, "num_weights": self.num_weights}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from there."""
        self.total, self.num_weights = state["total"], state["num_weights"]


def read_incident(path: str | Path) -> Incident:
    """Read what `IncidentLog` has written.

    Raises:
        IncidentError: no such file, not JSON, of another version, or incomplete; names the file.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise IncidentError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise IncidentError(f"{path} is not JSON, or cut short: {error}") from error
    if not isinstance(content, dict) or "version" not in content:
        raise IncidentError(f"{path} is not an incident: files of <run>/incidents/*.json are")
    if (version := content.pop("version")) != _VERSION:
        raise IncidentError(f"{path} is of version {version}; this is version {_VERSION}")
    names = {each.name for each in fields(Incident)}
    if wrong := sorted(names ^ set(content)):
        what = "lacks" if wrong[0] in names else "has an unknown field,"
        raise IncidentError(f"{path} {what} {wrong[0]}")
    try:
        return Incident(
            **{
                **content,
                "loss": _number(content["loss"]),
                "grad_norm": _number(content["grad_norm"]),
                "grad_norms": {k: _number(v) for k, v in content["grad_norms"].items()},
                "samples": tuple(Member(**each) for each in content["samples"]),
                "digests": tuple(MicroBatchDigest(**each) for each in content["digests"]),
            }
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise IncidentError(f"{path} is not an incident: {error}") from error


def _worded(value: Any) -> Any:
    """JSON has no numbers for what is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _worded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_worded(each) for each in value]
    return value


def _number(value: Any) -> float:
    return _WORDS[value] if value in _WORDS else float(value)
