"""Signals: stop at the next step boundary, with everything saved, and tell the other islands why."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""What schedulers, terminals and people send to end a run or to say that its time is nearly over."""


@contextlib.contextmanager
def caught() -> Iterator[list[int]]:
    """Signals that have come, in their order."""
    came: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {n: signal.getsignal(n) for n in STOPPING if signal.getsignal(n) != signal.SIG_IGN}
        for number in before:
            signal.signal(number, lambda n, _: came.append(n))
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopFlag:
    """Set by a signal; the trainer looks at it after each step. A second signal changes nothing."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self._previous: dict[int, object] = {}

    def install(self) -> None:
        """Take over the signals that stop a run (main thread only); under nohup SIGHUP stays ignored."""
        for number in STOPPING:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._catch)

    def restore(self, leaving: bool) -> None:
        """Give the signals back. leaving: this process ends now, so that one that comes late changes nothing any more.

        Whoever started several ranks asks all to stop when the first has left: one that has saved must not die of it.
        """
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if leaving else handler)  # pyright: ignore[reportArgumentType]
        self._previous.clear()

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name


def _store() -> Store | None:
    """Key and value by the side of the default process group; None: there is none."""
    import torch.distributed as dist  # late: who starts ranks needs STOPPING, and no torch

    if not dist.is_available() or not dist.is_initialized():
        return None
    return dist.distributed_c10d._get_default_store()  # torch has no public way to it


def tell_stopped(island: int, cause: str) -> None:
    """Leave word for the other processes of the default group that this island has saved and goes."""
    store = _store()
    if store is not None:
        with contextlib.suppress(RuntimeError):  # it may lie with a process that is gone: then nobody can be told
            store.set(f"lowcomm/stopped/{island}", cause)


def who_stopped(islands: int) -> tuple[int, str] | None:
    """An island that has said that it was told to stop, and by what: why an exchange with it failed. None: no word."""
    store = _store()
    if store is None:
        return None
    with contextlib.suppress(RuntimeError):
        for island in range(islands):
            if store.check([key := f"lowcomm/stopped/{island}"]):
                return island, store.get(key).decode()
    return None


def who_asked(islands: int, at_step: bool) -> str:
    """What stops this process, which got no signal itself. at_step: whether it is at the step to stop at."""
    if at_step:
        return "stop_at_step"
    elsewhere = who_stopped(islands)
    return "a signal to another rank" if elsewhere is None else f"island {elsewhere[0]} was: {elsewhere[1]}"
