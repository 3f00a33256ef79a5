"""metrics.jsonl (one line per event, the same keys in each) and TensorBoard scalars, written live."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

KEYS = (
    *("event", "island", "round", "step", "tokens", "loss", "val_loss", "val_bpb", "bytes_sent", "bytes_received"),
    *("step_s", "sync_s", "blocked_s", "lr", "grad_norm", "delta_norm", "note", "time_s"),
    *("fragment", "launched_s", "launch_s", "start_s", "exchange_s", "transfer_s", "exchanged_bytes"),
    *("needed_bytes_per_s", "waited_s", "cause", "aggregation_error", "epsilon", "epsilon_total", "rank"),
    *("consensus_distance", "components", "spectral_gap", "average_direction_sharpness", "steps_root"),
    *("version", "members", "contributions", "staleness", "requests", "tokens_done"),
)


SCALARS = ("loss", "val_loss", "val_bpb", "bytes_sent", "sync_s", "lr", "grad_norm", "delta_norm", "step_s")
"""What TensorBoard shows."""


class Metrics:
    """Appends lines; several processes may share the file, since each line is one O_APPEND write.

    A full disk does not stop a run: lines are then lost, and `failure` says why.
    """

    def __init__(self, directory: Path, tensorboard: bool) -> None:
        self._file = os.open(directory / "metrics.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._board = _open_board(directory) if tensorboard else None
        self.failure: str | None = None

    def write(self, values: dict[str, Any]) -> None:
        """One event; keys are those of KEYS, missing ones become null. Raises KeyError for any other key."""
        unknown = set(values) - set(KEYS)
        if unknown:
            raise KeyError(f"unknown metrics {sorted(unknown)}")
        line = json.dumps({key: values.get(key) for key in KEYS}) + "\n"
        try:
            written = os.write(self._file, line.encode())
            if written < len(line.encode()):
                self.failure = "a line was written in part"
        except OSError as error:
            self.failure = error.strerror or str(error)
        self._write_scalars(values)

    def _write_scalars(self, values: Mapping[str, Any]) -> None:
        if self._board is None or self.failure is not None:
            return
        prefix = "global" if values.get("island") is None else f"island{values['island']}"
        try:
            for key in SCALARS:
                if values.get(key) is not None:
                    self._board.add_scalar(f"{prefix}/{key}", values[key], values["step"])
        except OSError as error:
            self.failure = error.strerror or str(error)

    def close(self) -> None:
        """Flush and close; safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self._board is not None:
            try:
                self._board.close()
            except OSError as error:
                self.failure = error.strerror or str(error)
            self._board = None


def _open_board(directory: Path) -> Any:
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError:
        return None  # an optional extra: metrics.jsonl has everything
    return SummaryWriter(str(directory / "tensorboard" / f"{os.getpid()}"))
