"""One thing at a time that runs beside training, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class Beside(Generic[T]):
    """Runs `work` when asked to; whoever asks collects its result before asking again."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._future: Future[T] | None = None

    @property
    def busy(self) -> bool:
        """Whether it was started and not collected: nobody else may touch what it works on."""
        return self._future is not None

    @property
    def ready(self) -> bool:
        """Whether its result can be collected without waiting."""
        return self._future is not None and self._future.done()

    def start(self) -> None:
        """Start it, if it is not under way."""
        if self._future is None:
            self._future = Future()
            # daemon: a process that stops must not wait for a store that does not answer
            threading.Thread(target=self._run, args=(self._future,), name="lowcomm-store", daemon=True).start()

    def collect(self) -> T:
        """Wait for the result. Raises what the work raised."""
        assert self._future is not None
        try:
            return self._future.result()
        finally:
            self._future = None

    def _run(self, future: Future[T]) -> None:
        try:
            with torch.no_grad():  # a new thread has gradients on
                done = self._work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(done)
