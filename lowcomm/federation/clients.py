"""The clients of a run, as the server sees them."""

from __future__ import annotations

from dataclasses import dataclass, field

from lowcomm.federation.mailbox import Outcome
from lowcomm.transport.relay import Answer


@dataclass
class Client:
    """One client, as the server sees it."""

    node: int
    island: int | None = None
    """What it says that it is; None before its first reply."""
    due: list[Answer] = field(default_factory=list)
    """Answers for its next message."""
    asked: int = 0
    """Exchanges that it has posted and has no answer of."""
    asked_at: float = 0.0
    outcome: Outcome | None = None
    notified: bool = False
    """Whether it knows that the run has failed, or goes on without it."""
    lost: str | None = None
    """Why it is lost; None: it is not."""

    @property
    def name(self) -> str:
        """For people."""
        return f"client {self.island}" if self.island is not None else f"node {self.node}"


@dataclass(frozen=True, kw_only=True)
class LostClient:
    """A client that the others went on without."""

    client: int
    round: int | None
    """In which the others missed it; None if they had ended, or did not say."""
    cause: str
