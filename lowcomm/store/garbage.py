"""Garbage: payloads and requests that no commit from the horizon on can name, and snapshots before it. Commits: never.

A request that was delayed for longer than a commit is kept would create an old version a second time.
"""

from __future__ import annotations

from lowcomm.store import keys
from lowcomm.store.chain_state import ChainState
from lowcomm.store.objects import Objects
from lowcomm.store.rules import ChainRules


def oldest_base(state: ChainState, rules: ChainRules) -> int:
    """Contributions and requests with an older base are not needed any more."""
    return state.horizon(rules.keep) - rules.stale


def is_garbage(key: str, state: ChainState, rules: ChainRules) -> bool:
    """Whether an object may go."""
    base, version = keys.base_of(key), keys.version_of_snapshot(key)
    if base is not None:
        return base < oldest_base(state, rules)
    return version is not None and version < state.horizon(rules.keep)


def collect(objects: Objects, state: ChainState, rules: ChainRules) -> int:
    """Delete what may go; returns how many objects. Raises StoreError."""
    if state.horizon(rules.keep) == 0:
        return 0
    listed = [one.key for prefix in (keys.DELTAS, keys.JOINS, keys.SNAPSHOTS) for one in objects.list(prefix)]
    gone = [key for key in listed if is_garbage(key, state, rules)]
    if gone:
        objects.delete(gone)
    return len(gone)
