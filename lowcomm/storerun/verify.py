"""The proof of a history: the chain is folded again from the oldest snapshot, and every digest in it compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lowcomm.store import fold, keys, valid
from lowcomm.store.chain_state import ChainState
from lowcomm.store.commit import Commit
from lowcomm.store.follower import MOST_AGAINST
from lowcomm.store.payloads import Payloads
from lowcomm.store.rules import ChainRules
from lowcomm.store.snapshot import load, read_manifest
from lowcomm.storerun.history import commits, manifests
from lowcomm.storerun.joining import Opened
from lowcomm.storerun.plan import rules_of
from lowcomm.types import PayloadError

FITS, DIFFERS = 0, 1
Say = Callable[[str], None]
Shots = Mapping[int, Sequence[str]]


def verify(opened: Opened, say: Say) -> int:
    """0: all fits; 1: it does not, and the first version that does not is named."""
    rules = rules_of(opened.config, opened.run)
    shots = _manifests(opened, say)
    state, broken = _oldest(opened, shots, rules, say)
    if state is None:
        say("no snapshot can be read: nothing to replay from")
        return DIFFERS
    first, folded, empty, doubts = state.version, 0, 0, Doubts(say)
    payloads, others, announced = Payloads(opened.objects, rules), dict[str, str](), set[str]()
    for version, raw, commit in commits(opened.objects, state.version):
        wrong = _other_past(state, commit, version) or doubts.refuted(state, raw)
        if wrong is not None:
            say(wrong)
            return DIFFERS
        wanted = valid.keys_of(state, raw, rules)
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
        others |= _other_snapshots(opened, state, shots)
        if applied.commit is not None and applied.why is None and applied.commit.snapshot is not None:
            announced.add(applied.commit.snapshot.key)
    if wrong := [*doubts.open, *(text for key, text in others.items() if key in announced)]:
        say(wrong[0])
        return DIFFERS
    if (later := _after_gap(opened, state.version)) is not None:
        say(f"version {state.version + 1}: commit {state.version} is missing, and commit {later} is there")
        return DIFFERS
    what = f"{folded} commits folded, {empty} of them changed nothing"
    say(f"versions {first} to {state.version} fit: {what}; digest {state.digest}")
    broken = _needed(opened, shots, broken)
    if broken:
        say(f"versions {broken[0]} to {first} are not proved, as snapshots of versions {broken} can't be read")
    return DIFFERS if broken else FITS


def _oldest(opened: Opened, shots: Shots, rules: ChainRules, say: Say) -> tuple[ChainState | None, list[int]]:
    """The oldest version of which a snapshot can be read, and those before it of which none can."""
    broken: list[int] = []
    for version in sorted(shots):
        for key in shots[version]:
            state = _load(opened, key, rules, say)
            if state is not None:
                return state, broken
        broken.append(version)
    return None, broken


def _other_snapshots(opened: Opened, state: ChainState, shots: Shots) -> dict[str, str]:
    """By key, how snapshots of this version contradict the fold. Only announced ones count: others may be anybody's."""
    found: dict[str, str] = {}
    for key in shots.get(state.version, ()):
        shot = read_manifest(opened.objects, key)
        if shot is not None and shot[0].state != state.digest:
            there, here = shot[0].state[:16], state.digest[:16]
            found[key] = f"version {state.version}: its snapshot has the digest {there}, the fold {here}"
    return found


class Doubts:
    """Commits that were made for other bits than the fold has: one machine's mistake, or the history's.

    They change nothing, as members fold them, too (`store/follower.py`). Where a later commit was made for the bits of
    the fold, theirs were wrong; where too many in a row were not, or the chain ends first, the history does not fit.
    """

    def __init__(self, say: Say) -> None:
        self.say = say
        self.open: list[str] = []
        """What is to be said of those that no later commit has settled."""

    def refuted(self, state: ChainState, raw: bytes) -> str | None:
        """The first version that does not fit, once that is sure."""
        theirs = valid.disagreement(state, raw)
        if theirs is not None:
            version, there, here = state.version, theirs[:16], state.digest[:16]
            self.open.append(f"version {version}: commit {version} has the digest {there}, the fold {here}")
        elif valid.agrees(state, raw):
            for line in self.open:
                self.say(f"{line}: later commits are made for the bits of the fold")
            self.open.clear()
        return self.open[0] if len(self.open) >= MOST_AGAINST else None


def _other_past(state: ChainState, commit: Commit | str, version: int) -> str | None:
    """How a commit contradicts the one before it; None: it does not, or is no commit at all."""
    if isinstance(commit, str) or commit.v != version or commit.prev == state.prev:
        return None
    return f"version {version}: commit {version} follows a commit {version - 1} with other bytes than there are now"


def _needed(opened: Opened, shots: Shots, broken: Sequence[int]) -> list[int]:
    """Of snapshots that can't be read those that the run counts on: the first one, and those that a commit announces.

    Whoever was stopped while it wrote one may finish it when its other files have been collected as garbage.
    """
    if not broken:
        return []
    later = (commit for _, _, commit in commits(opened.objects, min(broken)))
    known = {c.snapshot.key for c in later if isinstance(c, Commit) and c.snapshot is not None}
    known.add(opened.run.snapshot.key)
    return [version for version in broken if known & set(shots[version])]


def _after_gap(opened: Opened, version: int) -> int | None:
    """The first commit behind the missing one of this number; None: the chain ends here, or has grown meanwhile."""
    objects, missing = opened.objects, keys.commit(version)
    later = [one.key for one in objects.list(keys.COMMITS) if one.key > missing]
    if not later or objects.get_range(missing, 0, 1) is not None:
        return None
    return int(later[0].removeprefix(keys.COMMITS))


def _manifests(opened: Opened, say: Say) -> dict[int, list[str]]:
    """Keys of snapshots' manifests by version; of one version several members may have written one."""
    found: dict[int, list[str]] = {}
    first = opened.run.snapshot
    for key in manifests(opened.objects):
        read = read_manifest(opened.objects, key)
        if read is None:
            say(f"snapshot {key}: its manifest can't be read")
        elif key == first.key and read[1] != first.sha256:
            say(f"snapshot {key} is not the one that run.json names")
        else:
            found.setdefault(read[0].version, []).append(key)
    return found


def _load(opened: Opened, key: str, rules: ChainRules, say: Say) -> ChainState | None:
    read = read_manifest(opened.objects, key)
    try:
        return None if read is None else load(opened.objects, key, read[0], rules)
    except PayloadError as error:
        say(f"snapshot {key}: {error}")
        return None
