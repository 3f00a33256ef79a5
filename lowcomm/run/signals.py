"""SIGTERM and Ctrl-C: stop at the next step boundary, with everything saved."""

from __future__ import annotations

import signal
from types import FrameType


class StopFlag:
    """Set by a signal; the trainer looks at it after each step. A second signal changes nothing."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self._previous: dict[int, object] = {}

    def install(self) -> None:
        """Take over SIGTERM and SIGINT (main thread only)."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._catch)

    def restore(self) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        self._previous.clear()

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
