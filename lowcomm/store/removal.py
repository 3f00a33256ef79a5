"""Commits by which an island takes itself out of the run: its goodbye, and the end of who it was before it healed."""

from __future__ import annotations

from lowcomm.store.commit import Commit, Removed
from lowcomm.store.member_view import MemberView


def removal(view: MemberView, inc: str, reason: str) -> Commit:
    """The next commit, without contributions, that removes this member: nobody waits until it is silent for long."""
    state, around = view.state, view.around
    return Commit(
        v=state.version, by=view.inc, nonce=around.draw(), prev=state.prev, state=state.digest,
        remove=(Removed(inc=inc, reason=reason[:1000]),), wall=around.wall(),
    )  # fmt: skip
