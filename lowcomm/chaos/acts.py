"""What each fault does in the process that it comes to."""

from __future__ import annotations

import math
import os
import signal
import time

import torch

from lowcomm.chaos.inject import Injector, flipped
from lowcomm.chaos.plan import Fault
from lowcomm.chaos.trouble import Trouble
from lowcomm.store.directory import DirectoryObjects

CLOCK_STEP_S = 2 * 86_400.0
AWAY = ".away"
"""What the name of a store's directory ends with while it is down."""
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}
FACTORS = {"nan": math.nan, "blow-up": 1e6}


class Acts:
    """real_full: whether whoever started the processes fills a real disk, so that nothing is to be done here."""

    def __init__(self, trouble: Trouble, *, real_full: bool) -> None:
        self.trouble, self.real_full = trouble, real_full

    def __call__(self, number: int, fault: Fault, injector: Injector) -> None:
        name = fault.fault
        if name in SIGNALS:
            os.kill(os.getpid(), SIGNALS[name])
        elif name in ("cut", "slow"):
            self.trouble.begin(name, fault.for_s)
        elif name in ("errors", "late") or (name == "full" and not self.real_full):
            self.trouble.begin_for_all(name, fault.for_s)
        elif name == "down":
            self._down(fault, injector)
        elif name == "damage":
            _damage(injector)
        elif name in FACTORS:
            _weights(injector, FACTORS[name])
        elif name == "bits":
            injector.bits = True
        elif name == "clock":
            _clock()

    def _down(self, fault: Fault, injector: Injector) -> None:
        """A directory is moved away, and moved back from outside; a bucket's requests fail."""
        objects = injector.objects
        if isinstance(objects, DirectoryObjects):
            objects.root.rename(objects.root.with_name(objects.root.name + AWAY))
        else:
            self.trouble.begin_for_all("errors", fault.for_s)


def _damage(injector: Injector) -> None:
    """A bit of this island's newest contribution, where it lies."""
    objects, key = injector.objects, injector.sent
    if isinstance(objects, DirectoryObjects) and key is not None and (path := objects.root / key).exists():
        path.write_bytes(flipped(path.read_bytes()))
        (injector.directory / f"{key.replace('/', '-')}.damaged").write_text(str(path), encoding="utf-8")


@torch.no_grad()
def _weights(injector: Injector, factor: float) -> None:
    assert injector.hands is not None
    for p in injector.hands.run.islands[0].model.parameters():
        p.mul_(factor)


def _clock() -> None:
    """The wall clock of this process; nothing of a run may depend on it."""
    real = time.time
    time.time = lambda: real() + CLOCK_STEP_S
