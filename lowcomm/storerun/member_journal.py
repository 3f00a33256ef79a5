"""What a member writes down: its steps, the versions that it applied, whom they let in and put out, trouble."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lowcomm.run.assembly import Run
from lowcomm.run.journal import Journal, finite
from lowcomm.store.applied import Applied
from lowcomm.store.chain_state import ChainState
from lowcomm.store.commit import Commit
from lowcomm.store.objects import Objects, StoreError
from lowcomm.storerun.names import Names, gone

EVENT = "version"


class MemberJournal:
    """Lines of metrics.jsonl and of the screen; `step` counts this member's inner steps, `round` outer steps."""

    def __init__(self, run: Run, objects: Objects) -> None:
        self.run, self.objects = run, objects
        self.lines = Journal(run)
        self.names = Names()
        self.worst_staleness = 0
        self.late: dict[str, int] = {}
        """Commits that members with work were not in, by name."""
        self._blocked_s = 0.0
        self.used = 0
        """Contributions of this process that are in the global weights."""

    def step(self, loss: float) -> None:
        """Count an inner step's loss."""
        self.lines.losses[0] += loss
        self.lines.trained[0] += 1

    def mean_loss(self) -> float | None:
        """Of the inner steps since the last line of the log."""
        lines = self.lines
        return lines.losses[0] / lines.trained[0] if lines.trained[0] else None

    def applied(
        self, one: Applied, before: ChainState | None, after: ChainState, *, inc: str, blocked_s: float
    ) -> None:
        """A version came. before: the state that the commit led from, where it is known.

        blocked_s: seconds so far in which this member did not train.
        """
        self._count_bytes()
        notes = self._changes(one, before)
        mine = [u for u in one.used if u.inc == inc]
        self.used += len(mine)
        self.worst_staleness = max([self.worst_staleness, *(u.staleness for u in one.used)])
        values: dict[str, Any] = {
            "version": one.version,
            "members": len(after.members),
            "contributions": len(one.used),
            "staleness": max((u.staleness for u in one.used), default=None),
            "waited_s": None if one.commit is None else one.commit.waited_s,
            "exchanged_bytes": one.nbytes,
            "requests": self.objects.counts.requests,
            "tokens_done": after.tokens_done,
            "note": "; ".join(notes) or None,
        }
        self.lines.write(None, EVENT, values)
        for note in notes:
            self.run.progress.note(f"version {one.version}: {note}")
        for u in mine:
            self.lines.write(
                0,
                "sync",
                {"delta_norm": finite(u.norm), "fragment": u.fragment, "staleness": u.staleness, "version": one.version}
                | {"exchanged_bytes": u.nbytes, "blocked_s": blocked_s - self._blocked_s, "sync_s": None},
            )
            self._blocked_s = blocked_s

    def _changes(self, one: Applied, before: ChainState | None) -> list[str]:
        commit, found = one.commit, list[str]()
        if one.why is not None:
            found.append(f"commit {one.version - 1} changed nothing: {one.why}")
        if commit is None or one.why is not None:
            return found
        self.names.learn(commit)
        found += [f"{self.names.of(a.inc)} joined" for a in commit.admit]
        found += [gone(self.names.of(r.inc), r.reason) for r in commit.remove]
        late = self._late(commit, one, before)
        if late:
            found.append(f"without {', '.join(late)} (waited {commit.waited_s:.1f} s)")
        found += ["the run was stopped"] if commit.stop else []
        return found

    def _late(self, commit: Commit, one: Applied, before: ChainState | None) -> list[str]:
        """Members that had work and no part in a commit that used contributions."""
        if before is None or not one.used:
            return []
        there = {u.inc for u in one.used} | {r.inc for r in commit.remove}
        missing = [i for i, m in before.members.items() if i not in there and (m.lease or not before.closing)]
        names = sorted(self.names.of(i) for i in missing)
        for name in names:
            self.late[name] = self.late.get(name, 0) + 1
        return names

    def log(self, lr: float, progress: int, version: int) -> None:
        """One line with the means since the last one. progress: inner steps of the whole run, per island."""
        run, lines = self.run, self.lines
        self._count_bytes()
        steps = max(1, lines.trained[0])
        loss = lines.losses[0] / steps if lines.trained[0] else None
        step_s = max(1e-9, lines.time_s() - self._logged_s) / steps
        norm = finite(run.islands[0].grad_norm)
        lines.write(0, "step", {"loss": loss, "lr": lr, "grad_norm": norm, "step_s": step_s, "version": version})
        tokens = run.sync.replicas[0].tokens
        run.progress.stepped(
            step=min(progress, run.config.steps), round=version, loss=math.nan if loss is None else loss,
            tokens=tokens, tokens_per_s=tokens / max(1, run.sync.step) / step_s,
        )  # fmt: skip
        lines.losses, lines.trained, self._logged_s = [0.0], [0], lines.time_s()

    _logged_s = 0.0

    def note(self, note: str) -> None:
        """A line for people, here and in the log."""
        self._count_bytes()
        self.run.progress.note(note)
        self.lines.note(note)

    def trouble(self, error: StoreError) -> None:
        """The store fails: training goes on inside the lease, and the cause is named."""
        self.run.progress.warn(error.cause.value, f"warning: {error}")
        self.lines.write(None, "note", {"note": str(error), "cause": error.cause.value})

    def evaluated(self, values: Mapping[str, float | str | None]) -> None:
        """An evaluation of the global weights."""
        self._count_bytes()
        self.lines.write(None, "eval", values)

    def _count_bytes(self) -> None:
        transport, counts = self.run.sync.transport, self.objects.counts
        transport.sent_bytes[0], transport.received_bytes[0] = counts.up_bytes, counts.down_bytes
