"""The checkpoints of a run: which are complete, which is the newest sound one, which may go."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from vlmkit.checkpoint.atomic import leftovers, remove_folder
from vlmkit.checkpoint.folder import (
    SHARD_BYTES,
    CheckpointFolder,
    CheckpointWriter,
    writing_checkpoint,
)
from vlmkit.errors import CheckpointError, ConfigError

log = logging.getLogger(__name__)

NAME = re.compile(r"step-(\d{8,})")
PINNED = "pinned"  # a file beside those of the manifest
ABANDONED_AFTER_S = 3600.0


def step_of(name: str) -> int | None:
    """The step in the name of a checkpoint folder, or None."""
    match = NAME.fullmatch(name)
    return int(match[1]) if match else None


class CheckpointStore:
    """Folders `step-00000120`, one per checkpoint. One process writes, any number read."""

    def __init__(
        self,
        folder: str | Path,
        keep_last: int = 3,
        keep_every: int | None = None,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        """Keep the numbers; nothing is read or made yet.

        Args:
            folder: holds the checkpoints.
            keep_last: number of newest complete checkpoints that stay.
            keep_every: checkpoints at multiples of this many steps stay, too.
            shard_bytes: tensors are split into files of at most this many bytes.

        Raises:
            ConfigError: nothing would be kept.
        """
        if keep_last < 1 or (keep_every is not None and keep_every < 1):
            raise ConfigError(
                f"keep_last={keep_last}, keep_every={keep_every}: both must be 1 at least"
            )
        self.folder = Path(folder)
        self.keep_last, self.keep_every = keep_last, keep_every
        self.shard_bytes = shard_bytes

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is, or is to be."""
        return self.folder / f"step-{step:08d}"

    def save(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        *,
        world_size: int = 1,
        config_hash: str | None = None,
    ) -> Path:
        """Write a checkpoint, then delete those that need not stay.

        Args:
            step: optimiser steps taken.
            tensors: by file, such as `model` and `optimizer`, and name.
            state: everything else; see `vlmkit.checkpoint.json_state`.
            world_size: number of ranks.
            config_hash: of what decides how the run goes.

        Raises:
            DiskFullError: there is no room.
            CheckpointError: the disk refuses, or a value cannot be written.
        """
        of_files = (tensor for group in tensors.values() for tensor in group.values())
        needed = sum(tensor.nbytes for tensor in of_files)
        with self.writing(
            step, world_size=world_size, config_hash=config_hash, needed_bytes=needed
        ) as writer:
            for stem, group in tensors.items():
                writer.write_tensors(stem, group)
            writer.write_state(state)
        return self.path(step)

    @contextmanager
    def writing(self, step: int, **facts: Any) -> Iterator[CheckpointWriter]:
        """As `save`, for who writes the files himself; `facts` as of `writing_checkpoint`."""
        self.clean()
        with writing_checkpoint(
            self.path(step), step, shard_bytes=self.shard_bytes, **facts
        ) as writer:
            yield writer
        self.retain(step)

    def complete(self) -> list[int]:
        """Steps whose checkpoint has all files, each as long as it was; ascending."""
        return [step for step in self._steps() if _is_complete(self.path(step))]

    def newest(self) -> CheckpointFolder | None:
        """The newest checkpoint whose every byte is as it was; a warning names each file that is not."""
        for step in reversed(self._steps()):
            try:
                return CheckpointFolder(self.path(step)).verify()
            except CheckpointError as error:
                log.warning(
                    "checkpoint of step %d is refused, taking an older one: %s", step, error
                )
        return None

    def load(self, step: int) -> CheckpointFolder:
        """The checkpoint of a step, every byte verified.

        Raises:
            CheckpointError: names the file that is missing or damaged, and the next older checkpoint.
        """
        try:
            return CheckpointFolder(self.path(step)).verify()
        except CheckpointError as error:
            older = [other for other in self.complete() if other < step]
            offer = f"the next older one is {self.path(older[-1])}" if older else "none is older"
            raise CheckpointError(f"{error}; {offer}") from error

    def pin(self, step: int) -> None:
        """Keep a checkpoint until it is written anew or deleted by hand.

        Raises:
            CheckpointError: there is none.
        """
        CheckpointFolder(self.path(step))
        (self.path(step) / PINNED).touch()

    def retain(self, saved: int) -> None:
        """Delete complete checkpoints that need not stay.

        The newest complete one always stays, and so does what is not complete: that is for a human to see.

        Args:
            saved: step of the checkpoint that was just written. It stays even where others are of later
                steps, as after going back to an earlier one.
        """
        complete = self.complete()
        kept = {saved, *complete[-self.keep_last :]}
        for step in complete:
            every = self.keep_every is not None and step % self.keep_every == 0
            if step in kept or every or (self.path(step) / PINNED).exists():
                continue
            try:
                remove_folder(self.path(step))
            except OSError as error:  # no reason to end a run
                log.warning("%s cannot be deleted: %s", self.path(step), error)

    def remove(self, step: int) -> None:
        """Delete a checkpoint, as those after the one that a run goes back to.

        Raises:
            CheckpointError: the disk refuses.
        """
        try:
            remove_folder(self.path(step))
        except OSError as error:
            raise CheckpointError(f"{self.path(step)} cannot be deleted: {error}") from error

    def clean(self, abandoned_after_s: float = ABANDONED_AFTER_S) -> None:
        """Remove what killed processes have left, and bring back what one was about to replace.

        For the writing process only, before it looks for the newest checkpoint. A folder of a process that
        lives on this host is left alone.

        Args:
            abandoned_after_s: a folder of another host goes when nothing in it has changed for so long.
                0 is for who knows that nobody else writes.
        """
        if not self.folder.is_dir():
            return
        for leftover in leftovers(self.folder):
            if step_of(leftover.target.name) is None or not leftover.is_abandoned(
                abandoned_after_s
            ):
                continue
            log.info("%s is what a killed process has left", leftover.path)
            leftover.settle()

    def _steps(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        steps = (step_of(path.name) for path in self.folder.iterdir() if path.is_dir())
        return sorted(step for step in steps if step is not None)


def _is_complete(path: Path) -> bool:
    try:
        CheckpointFolder(path)
    except CheckpointError:
        return False
    return True
