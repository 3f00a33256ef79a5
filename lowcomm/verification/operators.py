"""The operators of one inner step of one island: their names and the hashes of what they gave, in order.

Forward, backward, clipping and the inner optimizer, as torch dispatches them. Memory that an operator hands out
unfilled is left out. Two machines that differ in a step agree on the operators before the first one that differs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lowcomm.private_files import make_directory, protect
from lowcomm.types import CheckpointError
from lowcomm.verification.leaf import hash_of
from lowcomm.verification.merkle import first_break, link
from lowcomm.verification.transcript import DIRECTORY

if TYPE_CHECKING:
    from lowcomm.island import PlainIsland
    from lowcomm.state.replica import Replica
    from lowcomm.verification.record import StepRecord

UNFILLED = ("empty", "resize_")
"""Parts of the names of operators whose memory holds whatever was there."""


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One call."""

    name: str
    hash: bytes


class Operators:
    """Watches the inner step `step` (from 1) of island `island` in a run computed again."""

    def __init__(self, island: int, step: int) -> None:
        self.island, self.step = island, step
        self.seen: list[Operator] = []
        self._mode: _Watch | None = None

    def watch(self, islands: Sequence[PlainIsland], replicas: Sequence[Replica], record: StepRecord) -> None:
        """Look at a simulated run, in which islands have their numbers."""
        replica = replicas[self.island]

        def before(model: nn.Module, _: Any) -> None:
            if self._mode is None and model.training and replica.steps == self.step - 1:
                self._mode = _Watch(self.seen)
                self._mode.__enter__()

        def after(local: int, step: int) -> None:
            if (local, step) == (self.island, self.step):
                self.close()

        islands[self.island].forward_model.register_forward_pre_hook(before)
        record.step_taken.append(after)

    def close(self) -> None:
        """Stop watching."""
        if self._mode is not None:
            self._mode.__exit__(None, None, None)
            self._mode = None


class _Watch(TorchDispatchMode):
    def __init__(self, seen: list[Operator]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        name = str(func)
        if not any(word in name for word in UNFILLED):
            results = [t for t in tree_leaves(made) if isinstance(t, Tensor)]
            if not results and func._schema.is_mutable:
                results = [t for t in tree_leaves(args) if isinstance(t, Tensor)]
            self.seen.append(Operator(name=name, hash=hash_of((str(i), t) for i, t in enumerate(results))))
        return made


def path_of(directory: Path, island: int, step: int) -> Path:
    """Where the operators of a step lie in a run directory."""
    return directory / DIRECTORY / f"operators-{island:05d}-{step:08d}.jsonl"


def write(directory: Path, operators: Operators) -> Path:
    """Write them down."""
    path = path_of(directory, operators.island, operators.step)
    make_directory(path.parent)
    lines = [json.dumps({"operator": o.name, "hash": o.hash.hex()}) + "\n" for o in operators.seen]
    path.write_text("".join(lines), encoding="utf-8")
    protect(path)
    return path


def read(directory: Path, island: int, step: int) -> list[Operator] | None:
    """What was written; None: nothing. Raises CheckpointError for anything else."""
    path = path_of(directory, island, step)
    if not path.exists():
        return None
    try:
        rows = [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines()]
        return [Operator(name=str(r["operator"]), hash=bytes.fromhex(r["hash"])) for r in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} holds no operators ({type(error).__name__})") from error


def first_differing(ours: Sequence[Operator], theirs: Sequence[Operator]) -> tuple[int | None, int]:
    """Index of the first operator that differs, None if none does, and how many pairs of hashes were compared."""
    count = min(len(ours), len(theirs))
    found, compared = first_break(_chain(ours[:count]), _chain(theirs[:count]))
    return (count if found is None and len(ours) != len(theirs) else found), compared


def _chain(operators: Sequence[Operator]) -> list[bytes]:
    chain: list[bytes] = []
    for one in operators:
        chain.append(link(chain[-1] if chain else b"", sha256(one.name.encode()).digest() + one.hash))
    return chain
