"""When a rank is lost, the others say which one, and leave."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from vlmkit.errors import UserError, listed

PEER_LOST = 69
"""Exit code of a rank that leaves because another one is gone: EX_UNAVAILABLE of sysexits.h."""

_LOST, _FAILED, _NUM_FAILED = "lost", "failed", "num_failed"  # keys of the store


class Store(Protocol):
    """What is used of `torch.distributed.Store`."""

    def set(self, key: str, value: str) -> None:
        """Write."""

    def get(self, key: str) -> bytes:
        """Read; waits where there is nothing yet."""

    def multi_get(self, keys: list[str]) -> list[bytes]:
        """Read several."""

    def check(self, keys: list[str]) -> bool:
        """Whether all of them are there."""

    def add(self, key: str, amount: int) -> int:
        """Count."""


@dataclass(frozen=True, kw_only=True)
class Sign:
    """What a rank has said of itself last."""

    rank: int
    count: int  # of its signs; another one than before: it lives
    step: int
    section: str | None
    host: str
    process_id: int
    has_left: bool = False

    def __str__(self) -> str:
        where = f"step {self.step}" + (f", `{self.section}`" if self.section else "")
        return f"rank {self.rank} (process {self.process_id} on {self.host}, last seen in {where})"


class Signs:
    """The signs of all ranks, in a store that all of them reach."""

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        self.store, self.rank, self.world_size = store, rank, world_size

    def give(self, sign: Sign) -> None:
        """Say that this rank lives."""
        self.store.set(str(self.rank), json.dumps(asdict(sign)))

    def of(self, ranks: Sequence[int]) -> dict[int, Sign]:
        """The last signs of some ranks; those that have given none are left out."""
        there = [rank for rank in ranks if self.store.check([str(rank)])]
        if not there:
            return {}
        found = self.store.multi_get([str(rank) for rank in there])
        return {rank: Sign(**json.loads(text)) for rank, text in zip(there, found, strict=True)}

    def silent(self, wait_s: float) -> list[Sign]:
        """Signs of those other ranks that give no new one for a while."""
        others = [rank for rank in range(self.world_size) if rank != self.rank]
        before = self.of(others)
        deadline = time.monotonic() + wait_s
        while before and time.monotonic() < deadline:
            time.sleep(min(0.2, wait_s / 4))
            now = self.of(list(before))
            before = {
                rank: sign
                for rank, sign in before.items()
                if now[rank].count == sign.count and not now[rank].has_left
            }
        return list(before.values())

    def fail(self, why: str) -> None:
        """Say that this rank fails; the first to say so is remembered."""
        if self.store.add(_NUM_FAILED, 1) == 1:
            self.store.set(_FAILED, f"rank {self.rank} failed first: {why}")

    def first_failure(self) -> str | None:
        """What the first rank that failed has said."""
        return self.store.get(_FAILED).decode() if self.store.check([_FAILED]) else None


class SignsOfLife(Callback):
    """Each rank gives a sign every few seconds, and watches the rank before it.

    A rank that is killed cannot say so. The others get an error of the network that names no rank, or,
    with NCCL, none at all until a time limit is over. Here the next rank notices the silence, names every
    rank that is silent, and all leave with exit code 69; torchrun or the scheduler starts them again. A
    rank that fails with an error says so, and the others print what it was.

    A sign is three short exchanges with the store at which the ranks met, in a thread: 2 ranks or 10,000,
    each has the same to do.
    """

    def __init__(self, every_s: float = 5.0, silent_after_s: float = 180.0) -> None:
        """Keep the settings.

        Args:
            every_s: seconds between two signs of a rank.
            silent_after_s: seconds without a sign after which a rank counts as lost.

        Raises:
            ValueError: a time is not positive, or signs come too seldom for the limit.
        """
        if not 0 < 3 * every_s <= silent_after_s:
            raise ValueError(
                f"signs_of_life: every_s is {every_s} and silent_after_s {silent_after_s}; the second must "
                "be at least three times the first"
            )
        self.every_s, self.silent_after_s = every_s, silent_after_s
        self._signs: Signs | None = None
        self._stop: threading.Event | None = None
        self._thread: threading.Thread | None = None
        self._count = 0
        self._trainer: Any = None
        self._module: Any = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin, where there are other ranks."""
        if not dist.is_initialized() or dist.get_world_size() < 2:
            return
        self._finish()
        self._trainer, self._module = trainer, pl_module
        if (store := _own_client()) is None:
            return
        store.set_timeout(timedelta(seconds=30))
        self._signs = Signs(store, dist.get_rank(), dist.get_world_size())
        self._signs.give(self._sign())
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._watch, args=(self._signs, self._stop), name="signs of life", daemon=True
        )
        self._thread.start()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """End; a rank that has left is not missed."""
        self._finish()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Say why this rank ends, or print which other rank is to blame."""
        signs = self._signs
        if signs is None or isinstance(exception, KeyboardInterrupt | SystemExit):
            self._finish()
            return
        # those who wait for this one must not take it for lost while it looks for who is
        with suppress(RuntimeError):
            if (first := signs.first_failure()) is not None:
                _print(signs.rank, first)
            elif _may_come_from_others(exception) and (lost := self.who_is_silent()):
                _print(signs.rank, lost)
            else:
                signs.fail(f"{type(exception).__name__}: {exception}".splitlines()[0])
        self._finish()

    def who_is_silent(self) -> str | None:
        """A line that names the ranks which give no sign now; None where all do, or there are no others."""
        if self._signs is None:
            return None
        return _describe(self._signs.silent(2.5 * self.every_s))

    def _sign(self, has_left: bool = False) -> Sign:
        assert self._signs is not None
        self._count += 1
        sections = getattr(self._module, "sections", None)
        return Sign(
            rank=self._signs.rank,
            count=self._count,
            step=int(self._trainer.global_step),
            section=getattr(sections, "current", None),
            host=socket.gethostname(),
            process_id=os.getpid(),
            has_left=has_left,
        )

    def _finish(self) -> None:
        if self._stop is not None:
            self._stop.set()
            assert self._thread is not None
            self._thread.join(self.every_s + 1)
            with suppress(RuntimeError):  # the store may have left with rank 0
                assert self._signs is not None
                self._signs.give(self._sign(has_left=True))
        self._stop = self._thread = self._signs = None

    def _watch(self, signs: Signs, stop: threading.Event) -> None:
        """Give signs, and look at the rank before this one."""
        before = (signs.rank - 1) % signs.world_size
        last: tuple[int, float] = (-1, time.monotonic())  # its count, and since when
        reached = time.monotonic()
        while not stop.wait(self.every_s):
            now = time.monotonic()
            try:
                signs.give(self._sign())
                if signs.store.check([_LOST]):
                    self._leave(signs.rank, signs.store.get(_LOST).decode())
                sign = signs.of([before]).get(before)
                reached = now
            except RuntimeError as error:
                if now - reached > self.silent_after_s:
                    self._leave(
                        signs.rank,
                        "the store at which the ranks met is gone, and with it rank 0 or torchrun's agent "
                        f"({error})",
                    )
                continue
            if sign is None or sign.has_left or sign.count != last[0]:
                last = (sign.count if sign else -1, now)
            elif now - last[1] > self.silent_after_s:
                self._report(signs)
                last = (sign.count, now)  # it has spoken meanwhile

    def _report(self, signs: Signs) -> None:
        """Name all that are silent, for all to read."""
        with suppress(RuntimeError):
            if lost := _describe(signs.silent(2.5 * self.every_s)):
                signs.store.set(_LOST, lost)
                time.sleep(2 * self.every_s)  # the store may live in this process: let others read
                self._leave(signs.rank, lost)

    def _leave(self, rank: int, why: str) -> None:
        _print(
            rank,
            f"{why}. The run ends with exit code {PEER_LOST}; resume=true goes on from its checkpoint",
        )
        os._exit(PEER_LOST)


def _own_client() -> Any:
    """Another connection to the store at which the ranks met; None where it is none of the network.

    Another thread may be waiting for an answer through the first one. `Store.clone` is no way to get it:
    with torch 2.15 a group made afterwards reads what ranks wrote before torchrun restarted them.
    """
    store: Any = dist.distributed_c10d._get_default_store()
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    if not isinstance(store, dist.TCPStore):
        return None
    client = dist.TCPStore(store.host, store.port, is_master=False, wait_for_workers=False)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"vlmkit/signs/{attempt}", client)


def _may_come_from_others(exception: BaseException) -> bool:
    return isinstance(exception, RuntimeError) and not isinstance(
        exception, UserError | torch.OutOfMemoryError
    )


def _describe(silent: Sequence[Sign]) -> str | None:
    if not silent:
        return None
    verb = "gives" if len(silent) == 1 else "give"
    return f"{listed([str(sign) for sign in silent], 16)} {verb} no sign of life any more"


def _print(rank: int, text: str) -> None:
    print(f"\nrank {rank}: {text}", file=sys.__stderr__ or sys.stderr, flush=True)
