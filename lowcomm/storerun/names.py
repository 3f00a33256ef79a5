"""Names of members for people: the label, and where two have the same one the beginning of their incarnation."""

from __future__ import annotations

import os
import re
import socket

from lowcomm.store.commit import Commit
from lowcomm.store.watch import LEFT
from lowcomm.types import require

FORM = re.compile(r"[a-z0-9-]{1,40}")


class Names:
    """Labels by incarnation, as commits let members in."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def learn(self, commit: Commit) -> None:
        """Take over whom a commit admits."""
        for admitted in commit.admit:
            self._names[admitted.inc] = admitted.name

    def know(self, inc: str, name: str) -> None:
        """Of a member of a snapshot."""
        self._names.setdefault(inc, name)

    def of(self, inc: str) -> str:
        """Label and the first six digits of the incarnation, as a restart has another one."""
        return f"{self._names.get(inc, 'member')} ({inc[:6]})"


def gone(name: str, reason: str) -> str:
    """How a member's end is told."""
    return f"{name} left" if reason == LEFT else f"{name} was removed: {reason}"


def check_name(name: str) -> str:
    """The name itself. Raises ConfigError for one that is no label."""
    require(FORM.fullmatch(name) is not None, "name", name, "1 to 40 of a-z 0-9 and -", "pass --name site-a")
    return name


def default_name() -> str:
    """The host's name and this process's number."""
    host = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().split(".")[0].lower()).strip("-")[:24] or "member"
    return f"{host}-{os.getpid()}"
