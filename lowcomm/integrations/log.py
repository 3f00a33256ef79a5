"""One sync as numbers for another trainer's log."""

from __future__ import annotations

from lowcomm.state.report import SyncReport
from lowcomm.transport import Transport


def log_line(transport: Transport, report: SyncReport) -> dict[str, float]:
    """Times in seconds; bytes of this rank since the run began, counted by its transport."""
    island = transport.local[0]
    return {
        "lowcomm/round": report.round.index,
        "lowcomm/sync_s": report.seconds_s,
        "lowcomm/blocked_s": report.blocked_s,
        "lowcomm/delta_norm": report.delta_norms[island],
        "lowcomm/islands_left_out": len(report.dropped),
        "lowcomm/bytes_sent": transport.sent_bytes[0],
        "lowcomm/bytes_received": transport.received_bytes[0],
    }
