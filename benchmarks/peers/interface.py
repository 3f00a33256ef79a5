"""What this host's line carries, by the interface's own counters."""

from __future__ import annotations

import threading
import time
from pathlib import Path

PEAK_S = 0.25
"""Peak rates are means over so long."""


def interface_bytes() -> tuple[int, int]:
    """(sent, received) by this host's line, packet headers included; zeros on an unshaped network."""
    lines = Path("/proc/net/dev").read_text(encoding="ascii").splitlines()
    for line in lines:
        if line.strip().startswith("tun0:"):
            fields = line.split(":")[1].split()
            return int(fields[8]), int(fields[0])
    return 0, 0


class PeakRate:
    """The largest number of bytes that this host sent in `PEAK_S`, while the block runs."""

    def __init__(self) -> None:
        self.sent_bytes_per_s = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakRate:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        start_s, before = time.perf_counter(), interface_bytes()[0]
        over = False
        while not over:
            over = self._over.wait(PEAK_S)
            now_s, now = time.perf_counter(), interface_bytes()[0]
            if now_s - start_s >= PEAK_S / 2:  # the last look may come early
                self.sent_bytes_per_s = max(self.sent_bytes_per_s, (now - before) / (now_s - start_s))
            start_s, before = now_s, now
