"""Agreement on who goes on when the run's group is broken: first written, first served, on the board.

Epoch e is a group of processes. Who finds it broken says so on the board with how far it has come, and waits until
every other member has done so, is dead, or has been silent for too long; then it writes who is left. What was written
first is epoch e + 1, for all: a process that wakes up later and is not in it is fenced. So there is one history,
whatever is cut off: only who reaches the board can go on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lowcomm.transport.heartbeat import Heartbeat
from lowcomm.types import FencedError, TransportError

POLL_S = 0.02


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far a process has come."""

    closed: int
    """Transactions that it has closed."""
    table: str | None
    """What the gather that closed the last one brought, for those who did not get it."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """A group of processes."""

    number: int
    members: tuple[int, ...]
    """Their ranks in the run, ascending."""


def broken(heartbeat: Heartbeat, epoch: Epoch) -> bool:
    """Whether a member has found the epoch's group broken."""
    return heartbeat.board.read(f"broken {epoch.number}") is not None


def next_members(heartbeat: Heartbeat, number: int) -> tuple[int, ...] | None:
    """Who is in epoch `number`; None: that is not decided."""
    text = heartbeat.board.read(f"members {number}")
    return None if text is None else tuple(json.loads(text))


def check_member(heartbeat: Heartbeat, epoch: Epoch) -> None:
    """Raise FencedError if the others have gone on without this process."""
    following = next_members(heartbeat, epoch.number + 1)
    if following is not None and heartbeat.rank not in following:
        raise FencedError(
            f"island {heartbeat.rank} was silent for too long, and islands {list(following)} have gone on without it: "
            "it stops, and has written nothing since. Fix: let the others end, or start all again with --resume auto"
        )


def agree(
    heartbeat: Heartbeat, epoch: Epoch, own: Standing, silent_s: float
) -> tuple[Epoch, dict[int, Standing], dict[int, str]]:
    """The next epoch, its members' standings, and why others are not in it. silent_s: longest
    time that another one is waited for.

    Raises FencedError for a process that the others have left behind, TransportError where a member has left of its
    own will: it has stopped, and so does the run.
    """
    board, me = heartbeat.board, heartbeat.rank
    board.post(f"standing {epoch.number} {me}", json.dumps([own.closed, own.table]))
    board.post(f"broken {epoch.number}", "")
    others, began_s = [k for k in epoch.members if k != me], time.monotonic()
    gone: dict[int, str] = {}
    while next_members(heartbeat, epoch.number + 1) is None:
        waiting = [k for k in others if k not in gone and not _is_there(heartbeat, epoch, k)]
        gone |= {k: why for k in others if (why := _why_gone(heartbeat, k, silent_s if k in waiting else None))}
        if (waited_s := time.monotonic() - began_s) > silent_s:  # alive, and stuck in something else
            gone |= {k: f"it has not come for {waited_s:.1f} s" for k in waiting if k not in gone}
        waiting = [k for k in waiting if k not in gone]
        if not waiting:
            living = sorted([me, *(k for k in others if k not in gone)])
            board.decide(f"members {epoch.number + 1}", json.dumps(living))
            continue
        time.sleep(POLL_S)
    check_member(heartbeat, epoch)
    members = next_members(heartbeat, epoch.number + 1) or ()
    standings = {k: _standing(heartbeat, epoch, k) for k in members}
    lost = {k: gone.get(k) or _how(heartbeat, k) for k in others if k not in members}
    return Epoch(number=epoch.number + 1, members=members), standings, lost


def furthest(standings: Mapping[int, Standing]) -> Standing:
    """That of a process that has closed the most transactions."""
    return max(standings.values(), key=lambda s: s.closed)


def _is_there(heartbeat: Heartbeat, epoch: Epoch, rank: int) -> bool:
    return heartbeat.board.read(f"standing {epoch.number} {rank}") is not None


def _standing(heartbeat: Heartbeat, epoch: Epoch, rank: int) -> Standing:
    closed, table = json.loads(heartbeat.board.read(f"standing {epoch.number} {rank}") or "")
    return Standing(closed=closed, table=table)


def _why_gone(heartbeat: Heartbeat, rank: int, silent_s: float | None) -> str | None:
    """Why a process can't go on; None: it may. silent_s None: it is there, whatever it does now."""
    condition = heartbeat.condition(rank)
    if (why := heartbeat.why_left(rank)) is not None:
        raise TransportError(f"island {rank} has left the run ({why}). Nothing was committed: local weights are kept.")
    if condition == "dead" or (silent_s is not None and heartbeat.silent_s(rank) > silent_s):
        return _how(heartbeat, rank)
    return None


def _how(heartbeat: Heartbeat, rank: int) -> str:
    if heartbeat.condition(rank) == "dead":
        return "its process is gone"
    return f"it has been silent for {heartbeat.silent_s(rank):.1f} s"


def names(ranks: Sequence[int]) -> str:
    """Islands in words."""
    return f"island {ranks[0]}" if len(ranks) == 1 else f"islands {list(ranks)}"
