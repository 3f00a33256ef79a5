"""The transcript of an island: what it says that its state was after every inner step and every committed exchange.

    steps/island-00000.jsonl    a line for the machine, one for the start, one per step, one per committed exchange

A step's leaf is the SHA-256 of the island's state before it exchanges anything; that of an exchange is taken after the
new weights are written, outer optimizer and all. What lies between two exchanges, with the second, is a segment: its
Merkle root, and the chain of roots, stand in the line of the exchange. Text, not code: whoever reads it checks it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lowcomm.types import CheckpointError, ConfigError
from lowcomm.verification.merkle import link, root_of

DIRECTORY = "steps"
STEP, COMMIT, START, MACHINE = "step", "commit", "start", "machine"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One hash of an island's state."""

    kind: str
    """STEP, or COMMIT for an exchange."""
    step: int
    """Inner steps done by then."""
    leaf: bytes
    """32 bytes."""
    island: int


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The entries up to a committed exchange, which is the last one of them."""

    round: int
    """Number of the exchange."""
    entries: tuple[Entry, ...]
    root: bytes
    chain: bytes

    @property
    def step(self) -> int:
        """Inner steps done at its end."""
        return self.entries[-1].step


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """What one island has written down."""

    island: int
    machines: tuple[Mapping[str, Any], ...]
    """Of every start of the run, in the words of `machine.py`."""
    start: Entry
    """The state before the first entry."""
    segments: tuple[Segment, ...]
    open: tuple[Entry, ...]
    """Entries after the last committed exchange."""

    def at(self, step: int) -> bytes | None:
        """The state's hash where a round begins after `step` inner steps; None: no exchange was committed there."""
        if step == self.start.step:
            return self.start.leaf
        found = [s.entries[-1].leaf for s in self.segments if s.step == step]
        return found[-1] if found else None

    def until(self, step: int) -> Transcript | None:
        """What of it was written by the time of an inner step; None: it begins later."""
        if self.start.step > step:
            return None
        kept = tuple(s for s in self.segments if s.step <= step)
        later = [e for s in self.segments[len(kept) :] for e in s.entries] + list(self.open)
        return replace(self, segments=kept, open=tuple(e for e in later if e.step <= step and e.kind == STEP))

    @property
    def chain(self) -> bytes:
        """The last value of the chain."""
        return self.segments[-1].chain if self.segments else self.start.leaf

    def text(self) -> str:
        """The lines of the file."""
        rows = [line(MACHINE, {k: v for k, v in m.items() if k != "kind"}) for m in self.machines]
        rows.append(entry_line(self.start))
        for segment in self.segments:
            rows += [entry_line(e) for e in segment.entries[:-1]] + [commit_line(segment)]
        return "".join([*rows, *(entry_line(e) for e in self.open)])


def path_of(directory: Path, island: int) -> Path:
    """Where the transcript of an island lies in its run directory."""
    return directory / DIRECTORY / f"island-{island:05d}.jsonl"


def line(kind: str, values: Mapping[str, Any]) -> str:
    """One line of the file."""
    return json.dumps({"kind": kind, **values}) + "\n"


def entry_line(entry: Entry) -> str:
    """Of the start, or of a step."""
    return line(entry.kind, {"step": entry.step, "leaf": entry.leaf.hex()})


def commit_line(segment: Segment) -> str:
    """Of an exchange, which closes a segment."""
    values = {"step": segment.step, "round": segment.round, "leaf": segment.entries[-1].leaf.hex()}
    return line(COMMIT, {**values, "root": segment.root.hex(), "chain": segment.chain.hex()})


def close(round: int, entries: Sequence[Entry], before: bytes) -> Segment:
    """The segment that an exchange closes. before: the chain until then."""
    root = root_of([e.leaf for e in entries])
    return Segment(round=round, entries=tuple(entries), root=root, chain=link(before, root))


def parse(text: str, island: int, where: str) -> Transcript:
    """Read a transcript. Raises CheckpointError where it is damaged, or its roots are not those of its leaves."""
    machines: list[Mapping[str, Any]] = []
    start: Entry | None = None
    segments: list[Segment] = []
    waiting: list[Entry] = []
    whole = text[: text.rfind("\n") + 1]  # a process that was killed may have left half a line
    for number, row in enumerate(whole.splitlines(), start=1):
        try:
            values = json.loads(row)
            kind = values["kind"]
            if kind == MACHINE:
                machines.append(values)
                continue
            entry = Entry(kind=kind, step=int(values["step"]), leaf=_hash(values["leaf"]), island=island)
            if kind == START:
                start = entry
                continue
            waiting.append(entry)
            if kind == COMMIT:
                assert start is not None
                segments.append(_segment(values, waiting, segments[-1].chain if segments else start.leaf))
                waiting = []
        except (ValueError, KeyError, TypeError, AssertionError, AttributeError) as error:
            why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise CheckpointError(f"{where}, line {number}: this is no transcript of steps ({why})") from error
    if start is None or not machines:
        raise CheckpointError(f"{where} says nothing of where the run began: it is cut short")
    return Transcript(
        island=island, machines=tuple(machines), start=start, segments=tuple(segments), open=tuple(waiting)
    )


def _segment(values: Mapping[str, Any], entries: Sequence[Entry], before: bytes) -> Segment:
    made = close(int(values["round"]), entries, before)
    if (_hash(values["root"]), _hash(values["chain"])) != (made.root, made.chain):
        raise ValueError("its root is not that of the hashes above it: somebody changed one of them")
    return made


def read(directory: Path, island: int) -> Transcript:
    """An island's transcript. Raises ConfigError where there is none, CheckpointError for a damaged one."""
    path = path_of(directory, island)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise ConfigError(
            f"{path} can't be read ({why}): without hashes of its steps nothing of a run can be compared. "
            "Fix: train with --step-hashes, and bring every island's file here"
        ) from error
    return parse(text, island, str(path))


def read_all(directory: Path, islands: int) -> list[Transcript]:
    """The transcripts of a run, by island."""
    return [read(directory, k) for k in range(islands)]


def _hash(value: object) -> bytes:
    found = bytes.fromhex(value) if isinstance(value, str) else b""
    if len(found) != 32:
        raise ValueError("a hash has 64 hexadecimal digits")
    return found
