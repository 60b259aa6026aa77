"""One thread that owns the engine; any number of clients ask it and listen."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from vlmkit.models.generation import Answer, Engine, Generated, Request, TokenLogprob
from vlmkit.serving.api_error import ApiError

logger = logging.getLogger(__name__)

STOP_LIMIT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What is new in an answer.

    Attributes:
        choice: which of the answers to a request.
        text: that stays, whatever follows.
        token_ids: since the last piece.
        logprobs: one per token, if they were asked for.
        result: the whole answer, with its last piece.
    """

    choice: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    result: Generated | None = None


@dataclass(eq=False)
class Ticket:
    """The answers to one request, as they grow. Lives in the event loop that asked."""

    loop: asyncio.AbstractEventLoop
    worker: EngineWorker
    pieces: asyncio.Queue[Piece | ApiError] = field(default_factory=asyncio.Queue)

    async def next(self) -> Piece:
        """The next piece of any of the answers.

        Raises:
            ApiError: the engine failed or was stopped.
        """
        piece = await self.pieces.get()
        if isinstance(piece, ApiError):
            raise piece
        return piece

    def put(self, piece: Piece | ApiError) -> None:
        """Hand over from the engine's thread."""
        try:
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)
        except RuntimeError:  # the loop has ended, and with it whoever listened
            logger.debug("nobody listens any more")


@dataclass(eq=False)
class _Growing:
    """An answer and how much of it has been handed over."""

    ticket: Ticket
    choice: int
    num_tokens: int = 0


class EngineWorker:
    """Runs the engine while there is something to answer.

    Requests that arrive together are answered together. An error in a step ends the answers under way, and
    a new engine takes the next ones.
    """

    def __init__(self, new_engine: Callable[[], Engine], max_open: int) -> None:
        """Hold the parts; `start` starts the thread.

        Args:
            new_engine: makes an engine that streams.
            max_open: answers that are under way, wait, or are being prepared.
        """
        self._new_engine, self.max_open = new_engine, max_open
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._growing: dict[Answer, _Growing] = {}
        self._open = 0
        self._lock = threading.Lock()
        self._stopping = False
        self._engine: Engine | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive() and not self._stopping

    @property
    def open_answers(self) -> int:
        """Answers that are under way, wait, or are being prepared."""
        return self._open

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End it; answers under way get an error."""
        self._commands.put(self._stop)
        self._thread.join(STOP_LIMIT_S)

    @contextmanager
    def room(self, answers: int) -> Iterator[None]:
        """Reserve places for the answers to one request.

        Raises:
            ApiError: there are not so many; status 429.
        """
        with self._lock:
            if self._open + answers > self.max_open:
                raise ApiError(
                    429,
                    f"{self._open} answers are under way or wait, and at most {self.max_open} may: try "
                    "again later",
                    code="queue_full",
                    headers={"Retry-After": "1"},
                )
            self._open += answers
        try:
            yield
        finally:
            with self._lock:
                self._open -= answers

    def submit(self, requests: Sequence[Request]) -> Ticket:
        """Ask for the answers to one request. Call `cancel` when nobody listens any more."""
        ticket = Ticket(asyncio.get_running_loop(), self)
        if not self.is_alive:
            ticket.put(_stopped())
        self._commands.put(lambda: self._add(ticket, requests))
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Give up what is not finished."""
        self._commands.put(lambda: self._cancel(ticket))

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._take_commands()
                if self._growing:
                    assert self._engine is not None
                    for answer in self._engine.step():
                        self._hand_over(answer)
            except Exception as error:
                logger.exception("the engine failed")
                message = f"the engine failed ({type(error).__name__}); the answer was given up"
                self._give_up(ApiError(500, message, code="engine_failed"))
                self._engine = None

    def _take_commands(self) -> None:
        """All that wait; when there is nothing else to do, wait for one."""
        waits = not self._growing
        while not self._stopping:
            try:
                command = self._commands.get(block=waits)
            except queue.Empty:
                return
            command()
            waits = False

    def _add(self, ticket: Ticket, requests: Sequence[Request]) -> None:
        try:
            if self._engine is None:
                self._engine = self._new_engine()
            for choice, request in enumerate(requests):
                self._growing[self._engine.add(request)] = _Growing(ticket, choice)
        except ValueError as error:
            ticket.put(ApiError(400, str(error)))
            self._cancel(ticket)

    def _cancel(self, ticket: Ticket) -> None:
        mine = [answer for answer, growing in self._growing.items() if growing.ticket is ticket]
        for answer in mine:
            del self._growing[answer]
            assert self._engine is not None
            self._engine.cancel(answer)

    def _hand_over(self, answer: Answer) -> None:
        growing = self._growing[answer]
        text = answer.release_text()
        result = answer.result() if answer.finished else None
        if not text and result is None:
            return  # part of a character, or of a stop string
        known = growing.num_tokens
        growing.num_tokens = len(answer.token_ids)
        if result is not None:
            del self._growing[answer]
        growing.ticket.put(
            Piece(
                choice=growing.choice,
                text=text,
                token_ids=tuple(answer.token_ids[known:]),
                logprobs=tuple(answer.logprobs[known:]),
                result=result,
            )
        )

    def _stop(self) -> None:
        self._stopping = True
        self._give_up(_stopped())

    def _give_up(self, error: ApiError) -> None:
        for ticket in {growing.ticket for growing in self._growing.values()}:
            ticket.put(error)
        self._growing.clear()


def _stopped() -> ApiError:
    return ApiError(503, "the server is stopping", code="stopping")
