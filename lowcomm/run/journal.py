"""What a run writes down while it goes on: metrics lines, progress, notes; and who writes when islands are lost."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping

import torch

from lowcomm.run.assembly import Run
from lowcomm.run.privacy_spent import privacy_spent
from lowcomm.run.run_dir import lock
from lowcomm.run.score_book import append
from lowcomm.state.deadlines import Late, describe
from lowcomm.state.report import SyncReport
from lowcomm.transport.heartbeat import Condition
from lowcomm.types import ConfigError


class Journal:
    """One process's part of it. Of an island's ranks the first one writes, what all of them have counted."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.synced = False
        """Whether a sync was committed since this was last cleared."""
        self.losses = [0.0] * len(run.islands)
        """Sums since the last line, and the steps in them: none of an island that rested."""
        self.trained = [0] * len(run.islands)
        self.logged_step = run.sync.step
        self.logged_s, self.logged_gradients_s = time.monotonic(), 0.0
        self.counted = [(0.0, 0, 0)] * len(run.islands)
        """Tokens, bytes sent and received of each local island; of one with several ranks as of the last line that all
        of them wrote together."""
        if (attack := run.config.sync.attack) is not None:
            run.progress.note(f"attack, as sync.allow_attack says: {attack.said}")
        run.sync.listeners.append(self.on_sync)
        run.sync.deadlines.listeners.append(self.on_late)
        if run.members.heartbeat is not None:
            run.members.heartbeat.listeners.append(self.on_peer)

    def count(self) -> None:
        """Bring `counted` up to date; all ranks of an island call it alike."""
        sync, mesh = self.run.sync, self.run.members.mesh
        sent, received = sync.transport.sent_bytes, sync.transport.received_bytes
        own = [(r.tokens, sent[i], received[i]) for i, r in enumerate(sync.replicas)]
        if mesh is not None:
            tokens, *counted = mesh.rows(torch.tensor(own[0], dtype=torch.float64)).sum(dim=0).tolist()
            own = [(tokens, int(counted[0]), int(counted[1]))]
        self.counted = own

    def on_sync(self, report: SyncReport) -> None:
        """Log a sync on each local island, and whoever was left out."""
        run = self.run
        self.synced = True
        self.count()
        spent = privacy_spent(run.sync.state, run.ledger)
        for i, island in enumerate(run.sync.transport.local):
            sat_out = not report.weights[island] and island not in report.dropped and any(report.weights)
            if sat_out and run.sync.replicas[i].shares_model:
                continue  # of a thousand clients they would be most of the log
            self.write(
                i,
                "sync",
                {
                    "sync_s": report.seconds_s,
                    "blocked_s": report.blocked_s,
                    "delta_norm": finite(report.delta_norms[island]),
                    "fragment": report.round.fragments[0],
                    "launched_s": None if report.launched is None else report.launched - run.start,
                    "launch_s": report.launch_s,
                    "start_s": report.began - run.start,
                    "exchange_s": report.exchange_s,
                    "transfer_s": report.transfer_s,
                    "exchanged_bytes": report.exchanged_bytes[i],
                    "needed_bytes_per_s": report.needed_bytes_per_s,
                    "aggregation_error": report.aggregation_error,
                    "steps_root": None if run.record is None else run.record.root(i),
                    "rank": report.ranks[island] if report.ranks else None,
                    "components": None if report.health is None else report.health.components,
                    "spectral_gap": None if report.health is None else report.health.spectral_gap,
                    "epsilon": None if spent is None else spent["epsilon_per_round"],
                    "epsilon_total": None if spent is None else spent["epsilon_total"],
                },
            )
        self.note_lost(report.round.index)
        for island, why in report.dropped.items():
            if run.lost.get(island, report.round.index) != report.round.index:
                continue  # as was said
            note = f"island {island} was left out of round {report.round.index}: {why}"
            run.progress.note(f"warning: {note}")
            self.note(note)
        for note in report.notes:
            self.note(note)
        if run.writes:
            self.keep(report)
        if spent is not None:
            once, in_all = (_shown(spent[key]) for key in ("epsilon_per_round", "epsilon_total"))
            self.note(f"privacy: epsilon {once} this round, {in_all} in all, at delta {spent['delta']:g}")
        run.progress.synced(seconds_s=report.seconds_s, sent_bytes=self.counted[0][1])

    def keep(self, report: SyncReport) -> None:
        """Write down what the rule thinks of islands, and who helps whom; a full disk does not stop a run."""
        try:
            if report.scores:
                append(self.run.directory, report.round.index, report.scores)
            if self.run.influence is not None:
                self.run.influence.write(self.run.directory)
        except OSError as error:
            self.run.progress.warn("scores", f"warning: scores are not written: {error.strerror or error}")

    def note_lost(self, round: int) -> None:
        """Say once of each island that is gone what becomes of the run. round: that in which it was found gone."""
        run = self.run
        for island, cause in run.sync.transport.lost.items():
            if island not in run.lost:
                run.lost[island] = round
                saves = "" if saves_without(run) else ", and without checkpoints"
                note = f"island {island} is gone: the run goes on without it{saves} ({cause})"
                if run.writes:
                    take_over(run)
                run.progress.note(f"warning: {note}")
                self.write(0, "lost", {"note": note})

    def on_peer(self, island: int, condition: Condition, passed_s: float) -> None:
        """Say that another island is dead, silent or heard again. Comes from the heartbeat's thread, at any time."""
        run = self.run
        notes = {
            "dead": f"island {island} is dead: its process is gone",
            "silent": f"island {island} is silent: no heartbeat for {passed_s:.1f} s",
            "alive": f"island {island} is heard again after {passed_s:.1f} s",
        }
        if condition in notes and island not in run.sync.transport.lost:
            own = run.sync.transport.local[0]
            line = {"event": "heartbeat", "island": own, "round": run.sync.round, "step": run.sync.step}
            more = {"cause": condition, "waited_s": passed_s, "note": notes[condition], "time_s": self.time_s()}
            run.metrics.write({**line, **more})
            run.progress.warn(f"{condition} {island}", f"warning: island {own}: {notes[condition]}")

    def on_late(self, late: Late) -> None:
        """Say that an exchange missed its deadline, and why, on each local island."""
        note = describe(late)
        values = {"fragment": late.fragment, "waited_s": late.waited_s, "cause": late.cause, "note": note}
        for i, island in enumerate(self.run.sync.transport.local):
            self.write(i, "deadline", {**values, "round": late.round.index})
            self.run.progress.warn(late.cause, f"warning: island {island}: {note}")

    def log(self) -> None:
        """One line per local island with the means since the last one."""
        run, sync = self.run, self.run.sync
        self.count()
        steps = max(1, sync.step - self.logged_step)
        step_s = (time.monotonic() - self.logged_s) / steps
        means = [loss / max(1, trained) for loss, trained in zip(self.losses, self.trained, strict=True)]
        if run.members.mesh is not None:
            means = run.members.mesh.rows(torch.tensor(means, dtype=torch.float64)).mean(dim=0).tolist()
        for i, island in enumerate(run.islands):
            if not self.trained[i] and sync.replicas[i].shares_model:
                continue
            lr, norm = island.lr(sync.step - 1), finite(island.grad_norm)
            loss = means[i] if self.trained[i] else None
            values = {"loss": loss, "step_s": step_s, "lr": lr, "grad_norm": norm}
            self.write(i, "step", {**values, "blocked_s": (sync.state.gradients_s - self.logged_gradients_s) or None})
        share = sync.transport.islands / len(sync.replicas)  # islands elsewhere do the same work
        tokens = sum(tokens for tokens, _, _ in self.counted) * share
        run.progress.stepped(
            step=sync.step,
            round=sync.round,
            loss=next((m for m, n in zip(means, self.trained, strict=True) if n), math.nan),
            tokens=tokens,
            tokens_per_s=tokens / max(1, sync.step) / step_s,
        )
        self.losses, self.trained = [0.0] * len(run.islands), [0] * len(run.islands)
        self.logged_step, self.logged_s, self.logged_gradients_s = sync.step, time.monotonic(), sync.state.gradients_s

    def note_skipped(self) -> None:
        """Say how many rows of streams were left out, on the rank that read them."""
        for number, shard in zip(self.run.sync.transport.local, self.run.shards, strict=True):
            if shard.skipped:
                note = f"{shard.skipped} rows of island {number} were left out, as they could not be used"
                self.run.progress.warn(f"skipped {number}", note)
                self.note(note)

    def note(self, note: str) -> None:
        """A line about the whole run."""
        self.write(None, "note", {"note": note})

    def write(self, local: int | None, event: str, values: Mapping[str, float | str | None]) -> None:
        """One metrics line of a local island, or of the whole run (None)."""
        sync, mesh = self.run.sync, self.run.members.mesh
        if mesh is None and local is None:
            self.count()
        elif mesh is None and local is not None:
            tokens = sync.replicas[local].tokens
            self.counted[local] = (tokens, sync.transport.sent_bytes[local], sync.transport.received_bytes[local])
        elif mesh is not None and mesh.rank:
            return
        chosen = self.counted if local is None else [self.counted[local]]
        tokens, sent, received = (sum(values) for values in zip(*chosen, strict=True))
        share = sync.transport.islands / len(sync.replicas)  # islands elsewhere do the same work
        self.run.metrics.write(
            {
                "event": event,
                "island": None if local is None else sync.transport.local[local],
                "round": sync.round,
                "step": sync.step,
                "tokens": int(tokens * (share if local is None else 1)),
                "bytes_sent": int(sent) // len(chosen),
                "bytes_received": int(received) // len(chosen),
                "time_s": round(self.time_s(), 6),
                **values,
            }
        )

    def time_s(self) -> float:
        """Seconds of this run so far, over all resumes, on the monotonic clock that all islands share."""
        return time.perf_counter() - self.run.start


def _shown(epsilon: float | str | None) -> str:
    return f"{epsilon:.4g}" if isinstance(epsilon, float) else "infinite"


def finite(value: float) -> float | None:
    """The value, None where it is none that JSON can hold."""
    return value if math.isfinite(value) else None


def saves_without(run: Run) -> bool:
    """Whether a checkpoint without the lost islands can be gone on from: not where each has weights of its own."""
    return run.sync.state.exchange.anchors == "shared"


def take_over(run: Run) -> None:
    """Be the one that writes what the run leaves behind, and keeps other runs out of its directory."""
    run.progress.enabled = True
    if run.lock is None and run.leads_node:
        with contextlib.suppress(ConfigError):  # who had it is frozen, not dead, and still keeps others out
            run.lock = lock(run.directory, 0, "auto")
