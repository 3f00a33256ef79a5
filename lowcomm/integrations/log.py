"""One sync as numbers for another trainer's log."""

from __future__ import annotations

from lowcomm.round.landing import SyncReport
from lowcomm.sync import LocalSGD


def log_line(sync: LocalSGD, report: SyncReport) -> dict[str, float]:
    """Times in seconds; bytes of this rank since the run began, counted by its transport."""
    island = sync.transport.local[0]
    return {
        "lowcomm/round": report.round.index,
        "lowcomm/sync_s": report.seconds_s,
        "lowcomm/blocked_s": report.blocked_s,
        "lowcomm/delta_norm": report.delta_norms[island],
        "lowcomm/islands_left_out": len(report.dropped),
        "lowcomm/bytes_sent": sync.transport.sent_bytes[0],
        "lowcomm/bytes_received": sync.transport.received_bytes[0],
    }
