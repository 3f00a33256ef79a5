"""Rows of fixed islands under faults, from what benchmarks/faults.py has measured, by the names of the chaos table."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.common import RESULTS

NAMES = {
    "kill -9 in_step": ("kill", "step"),
    "kill -9 at_start": ("kill", "encode"),
    "kill -9 in_exchange": ("kill", "upload"),
    "kill -9 in_exchange, island 0": ("kill", "upload"),
    "kill -9 after_apply": ("kill", "apply"),
    "SIGSTOP for 20 s": ("stop", "step"),
    "SIGSTOP for good": ("stop", "step"),
    "SIGTERM to one": ("term", "step"),
    "nan_weights": ("nan", "step"),
    "nan_gradients": ("nan", "step"),
    "blow_up": ("blow-up", "step"),
    "flip_contribution": ("corrupt", "upload"),
    "disk_full": ("full", "snapshot"),
}


def fixed_rows() -> list[dict[str, Any]]:
    """One for each fault that both know; no stall and no recovery, as that benchmark measured neither."""
    found = json.loads((RESULTS / "faults.json").read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = []
    for row in found["rows"]:
        if row["fault"] not in NAMES:
            continue
        fault, phase = NAMES[row["fault"]]
        change, bpb = row["final_val_bpb_change"], row["val_bpb"]
        lived = row["exit_code"] == 0
        rows.append({
            "fault": fault, "phase": phase, "system": f"fixed islands ({row['exchange']})", "what": row["fault"],
            "islands": row["islands"], "survived": lived, "replicas_equal": lived or bool(row["resumable"]),
            "rounds_lost": row["rounds_lost"], "stall_s": None, "recovery_s": None,
            "final_loss_change": None if change is None or bpb is None else change / (bpb - change),
            "noticed_s": row["noticed_s"], "commit": found["commit"],
            "why_not": None if lived else f"it ended with {row['exit_code']}; resumable: {row['resumable']}",
        })  # fmt: skip
    return rows
