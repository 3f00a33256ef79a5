"""Exact checks of a commit: integers, bytes and digests, so that every island comes to the same answer.

What needs judgement (norms, who is late, damping) is the committer's: it is written down in the commit and followed.
"""

from __future__ import annotations

from collections.abc import Mapping

from lowcomm.store import keys
from lowcomm.store.chain_state import ChainState
from lowcomm.store.commit import Commit
from lowcomm.store.contribution import Contribution, Damaged, Header
from lowcomm.store.rules import ChainRules
from lowcomm.types import PayloadError

Held = Mapping[str, Contribution | Damaged]
"""What lies under the keys that a commit uses."""
MOST_WEIGHT = 1 + 2**-20


def check(state: ChainState, raw: bytes, held: Held, rules: ChainRules) -> tuple[Commit, list[Contribution]]:
    """The commit and what it uses, in order. Raises PayloadError with the reason why it changes nothing."""
    commit = Commit.read(raw)
    check_place(state, commit)
    used = [_held(held, u.key, u.sha256) for u in commit.used]
    check_used(state, [c.header for c in used], rules)
    check_weights(commit, [c.header for c in used], rules)
    check_admitted(state, commit, rules)
    removed = [r.inc for r in commit.remove]
    if len(set(removed)) != len(removed) or not set(removed) <= set(state.members):
        raise PayloadError("it removes somebody who is no member")
    shot = commit.snapshot
    if shot is not None and (shot.version > state.version or keys.version_of_snapshot(shot.key) != shot.version):
        raise PayloadError(f"it announces the snapshot {shot.key} of version {shot.version}")
    return commit, used


def disagreement(state: ChainState, raw: bytes) -> str | None:
    """The digest of this version in a commit that stands in the right place and has another one than the reader."""
    try:
        commit = Commit.read(raw)
    except PayloadError:
        return None
    in_place = (commit.v, commit.prev) == (state.version, state.prev)
    return commit.state if in_place and commit.state != state.digest else None


def agrees(state: ChainState, raw: bytes) -> bool:
    """Whether a commit was made for the bits of this very version."""
    try:
        check_place(state, Commit.read(raw))
    except PayloadError:
        return False
    return True


def other_past(state: ChainState, raw: bytes) -> bool:
    """Whether a commit for this version follows another commit than the one that led here."""
    try:
        commit = Commit.read(raw)
    except PayloadError:
        return False
    return commit.v == state.version and commit.prev != state.prev


def keys_of(state: ChainState, raw: bytes, rules: ChainRules) -> list[str]:
    """The keys that must be read before this commit is folded; none for one that is invalid as it is."""
    try:
        commit = Commit.read(raw)
        check_place(state, commit)
    except PayloadError:
        return []
    found = {u.key: keys.read_delta(u.key) for u in commit.used}
    late = range(max(0, state.version - rules.stale), state.version + 1)
    return [key for key, parts in found.items() if parts is not None and parts.base in late]


def damaged(raw: bytes, held: Held) -> str | None:
    """A key that a commit names and whose object was whole once: it can't be read any more, and is never left out.

    Nobody commits what is no contribution, so that an object which is none, and not what the commit names, was damaged
    afterwards: some have applied it. One that is whole and not what it names makes the commit nonsense.
    """
    try:
        commit = Commit.read(raw)
    except PayloadError:
        return None
    lost = [u.key for u in commit.used if isinstance(one := held.get(u.key), Damaged) and one.sha256 != u.sha256]
    return lost[0] if lost else None


def check_place(state: ChainState, commit: Commit) -> None:
    """It must follow this very state."""
    if state.done:
        raise PayloadError("the run is over")
    if (commit.v, commit.prev) != (state.version, state.prev):
        raise PayloadError(f"it is commit {commit.v} after {commit.prev[:12]}, not {state.version} after it")
    if commit.state != state.digest:
        raise PayloadError(f"it was made for another version {state.version}: {commit.state[:12]}")


def check_used(state: ChainState, used: list[Header], rules: ChainRules) -> None:
    """Every contribution is of a member, its next one, of a version of late, and of blocks that it holds."""
    settled = {inc: m.settled for inc, m in state.members.items()}
    leases = {inc: set(m.lease) for inc, m in state.members.items()}
    for header in used:
        check_contribution(state, header, rules)
        check_author(state, header)
        check_sequence(settled, header)
        check_blocks(leases, header, rules)
    check_enough(used, rules)


def check_contribution(state: ChainState, header: Header, rules: ChainRules) -> None:
    """It is of this run and was taken from a version of late, as that was."""
    if (header.run_id, header.codec) != (rules.run_id, rules.codec_name):
        raise PayloadError(f"{header.key} is of run {header.run_id}, codec {header.codec}")
    if header.fragment >= len(rules.layouts):
        raise PayloadError(f"{header.key} is of fragment {header.fragment}, there are {len(rules.layouts)}")
    if not state.version - rules.stale <= header.base <= state.version:
        raise PayloadError(f"{header.key} can't be used in commit {state.version}: S = {rules.stale}")
    seen = state.seen(header.base)
    if seen is None or seen.digest != header.anchor:
        raise PayloadError(f"{header.key} was taken from another version {header.base}")


def check_author(state: ChainState, header: Header) -> None:
    """Only members are used: what a removed one had sent is trained by others."""
    if header.inc not in state.members:
        raise PayloadError(f"{header.key} is of no member")


def check_sequence(settled: dict[str, int], header: Header) -> None:
    """Each one once, in order. `settled` goes on."""
    if header.seq != settled[header.inc] + 1:
        raise PayloadError(f"{header.key} is not the next one: {settled[header.inc]} was used last")
    settled[header.inc] = header.seq


def check_blocks(leases: dict[str, set[int]], header: Header, rules: ChainRules) -> None:
    """Blocks count with fragment 0, once each. `leases` go on."""
    blocks = set(header.blocks)
    if blocks and (rules.blocks is None or header.fragment != 0):
        raise PayloadError(f"{header.key} has blocks: fragment 0 of shared data has them")
    if not blocks <= leases[header.inc]:
        raise PayloadError(f"{header.key} has blocks that its author does not hold: {sorted(blocks)[:5]}")
    leases[header.inc] -= blocks


def check_enough(used: list[Header], rules: ChainRules) -> None:
    """As many as the rule of aggregation needs, for each fragment."""
    for fragment in {h.fragment for h in used}:
        count = sum(h.fragment == fragment for h in used)
        if count < rules.aggregator.fewest:
            raise PayloadError(f"{count} contributions to fragment {fragment}: {rules.aggregator.fewest} are needed")


def check_weights(commit: Commit, used: list[Header], rules: ChainRules) -> None:
    """They are a mean's, fragment by fragment."""
    sums = [0.0] * len(rules.layouts)
    for one, header in zip(commit.used, used, strict=True):
        sums[header.fragment] += one.weight
    if max(sums) > MOST_WEIGHT:
        raise PayloadError(f"its weights add up to {max(sums):.6g}")


def check_admitted(state: ChainState, commit: Commit, rules: ChainRules) -> None:
    """Somebody new, whose request is of late: nobody comes back under an incarnation that was removed."""
    asked = [a.inc for a in commit.admit]
    if len(set(asked)) != len(asked):
        raise PayloadError("it admits somebody twice")
    for one in commit.admit:
        if one.inc in state.members or one.inc in state.gone:
            raise PayloadError(f"{one.inc} is or was a member")
        if not state.version - rules.stale <= one.base <= state.version:
            raise PayloadError(f"{one.inc} asked at version {one.base}")


def _held(held: Held, key: str, sha256: str) -> Contribution:
    found = held.get(key)
    if found is None:  # `keys_of` did not ask for it
        raise PayloadError(f"{key} can be no contribution to it")
    if found.sha256 != sha256:
        raise PayloadError(f"{key} is not what it names: {found.sha256[:12]}, expected {sha256[:12]}")
    if isinstance(found, Damaged):
        raise PayloadError(f"{key}: {found.why}")
    return found
