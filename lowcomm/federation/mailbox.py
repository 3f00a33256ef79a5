"""Between the thread that trains and the one that answers Flower's messages."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from lowcomm.transport.base import KEPT
from lowcomm.transport.relay import Answer, Request
from lowcomm.transport.relayed import Waiting
from lowcomm.types import StoppedError, TransportError


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a client's run ended."""

    code: int
    """Exit code of the run."""
    weights_sha256: str | None = None
    error: str | None = None
    lost: tuple[tuple[int, int], ...] = ()
    """Other clients that it went on without: number, and the round in which it lost it."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why the run can't go on, as all its clients are told."""

    cause: str
    stopped: bool = False
    """Whether a client was told to stop, and has saved: the others are to do so, too."""


class Mailbox:
    """Requests that wait to be sent, and answers that are waited for. Every method may be called by either thread."""

    def __init__(self, timeout_s: float) -> None:
        """timeout_s: an answer that takes longer is an error."""
        self._timeout_s = timeout_s
        self._changed = threading.Condition()
        self._unsent: list[Request] = []
        self._asked: set[int] = set()
        self._answers: dict[int, Answer] = {}
        self._failure: Failure | None = None
        self._outcome: Outcome | None = None
        self._reported = False
        self._run: int | None = None
        self.parted = threading.Event()
        """Set once the server has the outcome: a SuperNode fetches the next message when it has handed on the last."""

    def post(self, request: Request) -> Waiting:
        """For `Relayed`. Raises TransportError at once if the run has failed elsewhere."""
        with self._changed:
            self._check()
            self._unsent.append(request)
            self._asked.add(request.number)
            self._changed.notify_all()
        return lambda: self._wait(request.number)

    def enter(self, run: int) -> None:
        """Take note of a message of Flower's run `run`. Raises TransportError if earlier ones were of another."""
        with self._changed:
            self._run = run if self._run is None else self._run
            if run != self._run:
                raise TransportError(f"a message is of the federation's run {run}, this client is in run {self._run}")

    def deliver(self, answers: Sequence[Answer]) -> None:
        """Hand answers to whoever waits for them."""
        with self._changed:
            for answer in answers:
                if answer.number not in self._asked:
                    raise TransportError(f"an answer to exchange {answer.number} came, which nobody waits for")
                self._asked.discard(answer.number)
                self._answers[answer.number] = answer
            self._changed.notify_all()

    def fail(self, failure: Failure) -> None:
        """Let every exchange fail, those under way and those to come."""
        with self._changed:
            self._failure = self._failure or failure
            self._unsent.clear()
            self._changed.notify_all()

    def finish(self, outcome: Outcome) -> None:
        """The trainer has ended."""
        with self._changed:
            self._outcome = outcome
            self._changed.notify_all()

    def collect(self) -> tuple[list[Request], Outcome | None]:
        """What to send now: waits for a request or the end, unless answers are outstanding and must be fetched."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._unsent or self._outcome is not None or (self._asked and self._failure is None)
            )
            if self._reported:
                self.parted.set()
            self._reported = self._outcome is not None
            unsent, self._unsent = self._unsent, []
            return unsent, self._outcome

    def _wait(self, number: int) -> Answer:
        with self._changed:
            there = self._changed.wait_for(
                lambda: number in self._answers or self._failure is not None, timeout=self._timeout_s
            )
            if number in self._answers:
                return self._answers.pop(number)
            if there:
                self._check()
        raise TransportError(
            f"exchange {number} was not answered within sync.timeout_s = {self._timeout_s:g} s: the server or another "
            f"client is gone. {KEPT}"
        )

    def _check(self) -> None:
        if self._failure is not None:
            kind = StoppedError if self._failure.stopped else TransportError
            raise kind(f"{self._failure.cause}. {KEPT}")
