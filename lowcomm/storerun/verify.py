"""The proof of a history: the chain is folded again from the oldest snapshot, and every digest in it compared."""

from __future__ import annotations

from collections.abc import Callable

from lowcomm.store import fold, keys, valid
from lowcomm.store.chain_state import ChainState
from lowcomm.store.commit import Commit
from lowcomm.store.payloads import Payloads
from lowcomm.store.rules import ChainRules
from lowcomm.store.snapshot import load, read_manifest
from lowcomm.storerun.history import commits, manifests
from lowcomm.storerun.joining import Opened
from lowcomm.storerun.plan import rules_of
from lowcomm.types import PayloadError

FITS, DIFFERS = 0, 1
Say = Callable[[str], None]


def verify(opened: Opened, say: Say) -> int:
    """0: all fits; 1: it does not, and the first version that does not is named."""
    rules = rules_of(opened.config, opened.run)
    shots, broken = _manifests(opened, say), list[int]()
    state = None
    for version in sorted(shots):
        state = _load(opened, shots[version], rules, say)
        if state is not None:
            break
        broken.append(version)
    if state is None:
        say("no snapshot can be read: nothing to replay from")
        return DIFFERS
    first, folded, empty = state.version, 0, 0
    payloads = Payloads(opened.objects, rules)
    for version, raw, commit in commits(opened.objects, state.version):
        wrong = _wrong_before(state, commit, version)
        if wrong is not None:
            say(wrong)
            return DIFFERS
        wanted = [u.key for u in commit.used] if isinstance(commit, Commit) else []
        held = payloads.fetch_all(wanted)
        if held is None:
            say(f"version {version + 1}: a contribution that commit {version} uses can't be read")
            return DIFFERS
        if (lost := valid.damaged(raw, held)) is not None:
            say(f"version {version + 1}: {lost}, which commit {version} uses, is damaged")
            return DIFFERS
        state, applied = fold.fold(state, raw, held, rules)
        payloads.drop(state.version - rules.stale, wanted)
        folded, empty = folded + 1, empty + int(applied.why is not None)
        if applied.why is not None:
            say(f"commit {version} changes nothing: {applied.why}")
        shot = None if state.version not in shots else read_manifest(opened.objects, shots[state.version])
        if shot is not None and shot[0].state != state.digest:
            there, here = shot[0].state[:16], state.digest[:16]
            say(f"version {state.version}: its snapshot has the digest {there}, the fold {here}")
            return DIFFERS
    if (later := _after_gap(opened, state.version)) is not None:
        say(f"version {state.version + 1}: commit {state.version} is missing, and commit {later} is there")
        return DIFFERS
    what = f"{folded} commits folded, {empty} of them changed nothing"
    say(f"versions {first} to {state.version} fit: {what}; digest {state.digest}")
    if broken:
        say(f"versions {broken[0]} to {first} are not proved, as snapshots of versions {broken} can't be read")
    return DIFFERS if broken else FITS


def _wrong_before(state: ChainState, commit: Commit | str, version: int) -> str | None:
    """How a commit contradicts the version that it is to lead from; None: it does not, or is no commit at all."""
    if isinstance(commit, str) or commit.v != version:
        return None
    if commit.prev != state.prev:
        return f"version {version}: commit {version} follows a commit {version - 1} with other bytes than there are now"
    if commit.state != state.digest:
        return f"version {version}: commit {version} has the digest {commit.state[:16]}, the fold {state.digest[:16]}"
    return None


def _after_gap(opened: Opened, version: int) -> int | None:
    """The first commit behind the missing one of this number; None: the chain ends here, or has grown meanwhile."""
    objects, missing = opened.objects, keys.commit(version)
    later = [one.key for one in objects.list(keys.COMMITS) if one.key > missing]
    if not later or objects.get_range(missing, 0, 1) is not None:
        return None
    return int(later[0].removeprefix(keys.COMMITS))


def _manifests(opened: Opened, say: Say) -> dict[int, str]:
    """Keys of snapshots' manifests by version; of several of one version the first that can be read."""
    found: dict[int, str] = {}
    first = opened.run.snapshot
    for key in manifests(opened.objects):
        read = read_manifest(opened.objects, key)
        if read is None:
            say(f"snapshot {key}: its manifest can't be read")
        elif key == first.key and read[1] != first.sha256:
            say(f"snapshot {key} is not the one that run.json names")
        else:
            found.setdefault(read[0].version, key)
    return found


def _load(opened: Opened, key: str, rules: ChainRules, say: Say) -> ChainState | None:
    read = read_manifest(opened.objects, key)
    try:
        return None if read is None else load(opened.objects, key, read[0], rules)
    except PayloadError as error:
        say(f"snapshot {key}: {error}")
        return None
