"""The shared vocabulary of every stage: Delta, Payload, Contribution, Round, and the errors.

Stages import this module and `lowcomm_kernels`, never each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
"""A target that no loss counts, as torch's cross-entropy has it: padding, and text that is not to be learnt."""

Delta = dict[str, "Tensor"]
"""Pseudo-gradient by parameter name: fp32, `global_before - local_after` (gradient sign), shapes kept."""


Part = tuple[dict[str, "Tensor"], dict[str, Any]]
"""A part of a checkpoint: named tensors and JSON values."""


class LowcommError(Exception):
    """Every error that lowcomm raises on purpose; the message is one line with the cause and the fix."""


class ConfigError(LowcommError):
    """Bad input found before anything starts (exit code 2): names field, value, range and fix."""


class CoverageError(LowcommError):
    """A trainable parameter or buffer is not in exactly one fragment; the model does not start."""


class SyncError(LowcommError):
    """An exchange failed. Local weights are untouched and the pseudo-gradient stays pending."""


class TransportError(SyncError):
    """The transport itself failed: a connection was lost, or nothing came within the time limit."""


class StoppedError(TransportError):
    """An exchange has no end, as another island was told to stop, and has saved: this one is to do alike."""


class RetryError(SyncError):
    """The exchange failed alike on every island that is left; nothing has changed, and it may be tried again now."""


class LostError(RetryError, TransportError):
    """Islands are gone, and those that are left have a group of their own again."""


class AlteredError(RetryError):
    """Contributions did not arrive as they were sent."""

    def __init__(self, message: str, islands: dict[int, str]) -> None:
        super().__init__(message)
        self.islands = islands
        """Whose, and what was seen."""


class FencedError(LowcommError):
    """The others have gone on without this island: whatever it would do or write now is not of the run any more."""


class UnusableError(SyncError):
    """Too few contributions were usable: from the same state the exchange would fail again."""


class AbandonedError(TransportError):
    """The transport of another rank of this island failed; this rank's own works."""


class DivergenceError(LowcommError):
    """Islands disagree on bits that must be equal (global weights, names, versions, configuration)."""


class PayloadError(LowcommError):
    """A payload is malformed, corrupt, stale or does not match what the receiver expects."""


class DataError(LowcommError):
    """Text can't be read in the middle of a run (a bad row, a broken file, a lost connection); shards are as before."""


class CheckpointError(LowcommError):
    """A checkpoint is missing, torn, corrupt or of another run."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round: H inner steps on every island, then one sync of `fragments`.

    All randomness of the round derives from `seed` (64-bit), which is equal on every island.
    """

    index: int
    step: int
    """Inner steps that each island has completed when the sync starts."""
    fragments: tuple[int, ...]
    seed: int
    island: int | None = None
    """The island that encodes with it, or whose payload is decoded; None where nothing depends on the island."""
    run: int = 0
    """64-bit number of the run, equal on every island and random: payloads of other runs are refused."""
    last: bool = False
    """The merge at the end of a run, after which the islands hold the global weights."""
    level: int = 0
    """How coarse a `Graded` codec is in this round; equal on every island."""
    link_bytes_per_s: float | None = None
    """This process's measured speed of sending; None before there is one, and in a simulation. Nothing that is decoded
    may depend on it."""

    def own_seed(self, use: int = 0) -> int:
        """64-bit seed for what each island draws for itself (stochastic rounding); `use` keeps two draws apart.

        Rounding errors of different islands must be independent, or the mean over islands would not reduce them.
        """
        island = 0 if self.island is None else self.island + 1
        mixed = (self.seed + island * 0x9E3779B97F4A7C15 + use * 0xD1B54A32D192ED03) % 2**64
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64  # finalizer of splitmix64
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
        return mixed ^ (mixed >> 31)


@dataclass(frozen=True, kw_only=True)
class Payload:
    """What crosses the link: `data` is a contiguous 1-D uint8 tensor, header included; `nbytes` is what is sent."""

    data: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes handed to the transport."""
        return self.data.numel()


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """One island's decoded Delta; `weight` is the tokens that it trained since its last sync."""

    island: int
    delta: Delta
    weight: float
    round: int
    notes: tuple[str, ...] = field(default=())


def counted(targets: Tensor) -> int:
    """Targets that a loss counts: what losses are divided by, and what an island weighs by."""
    return int((targets != IGNORED).sum())


def require(ok: bool, field_name: str, value: object, legal: str, fix: str) -> None:
    """Raise the one-line ConfigError `FIELD = VALUE is not allowed: LEGAL. FIX.` unless `ok`."""
    if not ok:
        raise ConfigError(f"{field_name} = {value!r} is not allowed: {legal}. Fix: {fix}.")
