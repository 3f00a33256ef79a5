"""Injection points, in a process that `lowcomm chaos` forked for it: the product's own calls, wrapped.

Nothing of it is in the product: a process that nobody has prepared has no injection points, and no setting, variable or
file could switch them on. A fault is claimed by creating its file, so that it comes once, whoever reaches it first.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lowcomm.chaos import record
from lowcomm.chaos.plan import AWAY, Fault
from lowcomm.chaos.record import Recorder
from lowcomm.chaos.trouble import Trouble
from lowcomm.state.norms import MIN_ROUNDS
from lowcomm.store import fold, keys, snapshot
from lowcomm.store.applied import Applied
from lowcomm.store.directory import DirectoryObjects
from lowcomm.store.follower import Follower
from lowcomm.store.island import StoreIsland
from lowcomm.store.objects import Answer, Objects
from lowcomm.store.own_work import OwnWork
from lowcomm.store.remote import RemoteObjects
from lowcomm.storerun.hands import Hands, Stepped

Act = Callable[[int, Fault, "Injector"], None]
"""Does a fault of this number."""


class Injector:
    """Faults of one run, as one island's process sees them. `install` wraps; after it they come by themselves."""

    def __init__(
        self, faults: Sequence[Fault], island: int, directory: Path, *, recorder: Recorder, act: Act, trouble: Trouble
    ) -> None:
        self.faults, self.island, self.directory = faults, island, directory
        self.recorder, self.act, self.trouble = recorder, act, trouble
        self.version = 0
        """Of the chain, as far as this process applied it."""
        self.rounds = 0
        """Commits with contributions until then: so many norms are known."""
        self.hands: Hands | None = None
        self.objects: Objects | None = None
        self.sent: str | None = None
        """Key of the newest contribution of this process that is in the store."""
        self.bits = False
        """Whether this process folds to other bits from now on."""

    def at(self, phase: str, *, only: str | None = None, never: Sequence[str] = ()) -> None:
        """The process has come to a phase; only, never: faults that may, or may not, come here."""
        for number, one in self._due(phase):
            if (only is None or one.fault == only) and one.fault not in never and self._claim(number):
                self.act(number, one, self)

    def takes(self, phase: str, fault: str) -> bool:
        """Whether a fault that changes what is passed on comes now."""
        return any(one.fault == fault and self._claim(number) for number, one in self._due(phase))

    def _due(self, phase: str) -> Iterator[tuple[int, Fault]]:
        for number, one in enumerate(self.faults):
            away = phase != "heal" and self.version >= one.round + AWAY
            mine = one.island is None or one.island == self.island or (away and self.island >= 0)
            if (one.fault == "damage" and self.sent is None) or (one.fault == "blow-up" and self.rounds < MIN_ROUNDS):
                continue  # there is nothing yet; nobody is judged by the size of its Delta yet
            if mine and one.phase == phase and self.version >= one.round and not self.place(number).exists():
                yield number, one

    def heals(self) -> bool:
        """Whether a fault waits for this island to heal: then it is made to, once."""
        wanted = [number for number, _ in self._due("heal")]
        new = [number for number in wanted if not self.place(number).with_suffix(f".ill{self.island}").exists()]
        for number in new:
            self.place(number).with_suffix(f".ill{self.island}").touch()
        return bool(new)

    def place(self, number: int) -> Path:
        """The file that says that a fault has come."""
        return self.directory / f"{number:03d}.json"

    def _claim(self, number: int) -> bool:
        body = {"at": time.monotonic(), "island": self.island, "version": self.version, "pid": os.getpid()}
        partial = self.directory / f"{number:03d}.{os.getpid()}.partial"
        partial.write_text(json.dumps(body), encoding="utf-8")
        try:
            os.link(partial, self.place(number))
        except FileExistsError:
            return False
        finally:
            partial.unlink()
        return True

    def install(self) -> None:
        """Wrap the product's calls in this process, for good."""
        _training(self)
        _sending(self)
        _chain(self)


def _training(injector: Injector) -> None:
    step, encode = Hands.step, OwnWork.encode

    def stepping(self: Hands, block: int | None, number: int, lr_step: int) -> Stepped:
        injector.hands = self
        injector.at("step")
        if injector.heals():
            return Stepped(loss=float("nan"), tokens=0)
        return step(self, block, number, lr_step)

    def encoding(self: OwnWork, state: Any, fragment: int, delta: Tensor, work: Any) -> Any:
        injector.at("encode", never=("nan", "blow-up"))
        for fault, factor in (("nan", float("nan")), ("blow-up", 1e6)):
            if injector.takes("encode", fault):
                delta = delta * factor
        return encode(self, state, fragment, delta, work)

    Hands.step, OwnWork.encode = stepping, encoding


def _sending(injector: Injector) -> None:
    """Upload, uploaded, snapshot: around the creation of contributions and manifests."""
    link, sends = DirectoryObjects._link, StoreIsland.send

    def linking(self: DirectoryObjects, written: Path, path: Path) -> Answer:
        injector.at(_phase_of(str(path.relative_to(self.root))))
        found = injector.trouble.now()
        if found is not None and found[0] in ("cut", "full"):  # it came while this was on its way
            raise OSError(errno.EIO, "cut off (injected)")
        return link(self, written, path)

    def sending(self: StoreIsland) -> None:
        injector.objects = self.objects
        before = set(self.follower.payloads.held)
        sends(self)
        arrived = [key for key in self.follower.payloads.held if key not in before]
        if arrived:
            injector.sent = arrived[-1]
            injector.at("uploaded")

    DirectoryObjects._link, StoreIsland.send = linking, sending
    for kind in (DirectoryObjects, RemoteObjects):
        _altering(injector, kind)


def _altering(injector: Injector, kind: type[Objects]) -> None:
    put = kind.put_new
    remote = kind is RemoteObjects

    def putting(self: Objects, key: str, data: bytes) -> Answer:
        if remote:
            injector.at(_phase_of(key), never=("corrupt",))
        if key.startswith(keys.DELTAS) and injector.takes("upload", "corrupt"):
            data = flipped(data)
        return put(self, key, data)

    setattr(kind, "put_new", putting)  # noqa: B010 - a method of either class


def _phase_of(key: str) -> str:
    """The phase that creating a key belongs to; none for commits and the rest."""
    if key.startswith(keys.DELTAS):
        return "upload"
    return "snapshot" if keys.is_manifest(key) else ""


def _chain(injector: Injector) -> None:
    """Apply and heal; and the record of versions."""
    step, load, apply, take = fold.step, snapshot.load, Follower.apply, StoreIsland.take

    def stepping(*arguments: Any) -> Any:
        stepped = step(*arguments)
        injector.at("apply")
        return dataclasses.replace(stepped, weights=stepped.weights * (1 + 2**-20)) if injector.bits else stepped

    def loading(*arguments: Any) -> Any:
        loaded = load(*arguments)
        if loaded is not None:
            injector.version, injector.objects = max(injector.version, loaded.version), arguments[0]
            injector.rounds = max(injector.rounds, loaded.fragments[0].version)
        injector.at("heal")
        return loaded

    def applying(self: Follower, raw: bytes, held: Any) -> Applied:
        applied = apply(self, raw, held)
        state = self.state
        assert state is not None
        injector.version, injector.rounds = state.version, state.fragments[0].version
        blocks = [b for u in applied.used for b in u.blocks]
        line = {"version": state.version, "digest": state.digest, "blocks": blocks, "used": len(applied.used)}
        injector.recorder.write({"event": record.VERSION, **line})
        return applied

    def taking(self: StoreIsland, applied: Applied) -> Applied:
        if any(u.inc == self.inc for u in applied.used):
            injector.recorder.write({"event": record.MINE, "version": applied.version})
        return take(self, applied)

    fold.step, snapshot.load, Follower.apply, StoreIsland.take = stepping, loading, applying, taking


def flipped(data: bytes) -> bytes:
    """The bytes with one bit of the second half changed: a payload's, not its header's."""
    at = len(data) * 3 // 4
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
