"""When to commit, and what: a committer's decision from what it holds. It never touches safety.

synchronous  every member that trains has contributed; or the grace time is over and a quorum has; or patience is over
buffered     Z contributions are there, or patience is over
timed        every `every_s`
a rule       of `lowcomm/arrival/`, in the place of these: the same as over an ordered log
Without contributions only members change, after patience: else a run whose members are all dead could admit nobody.
Members take their turns in an order that changes with every version: no election, a dead first one costs a delay.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from lowcomm.store import judge, leases
from lowcomm.store.chain_state import ChainState
from lowcomm.store.commit import Admitted, Removed, Used
from lowcomm.store.contribution import Contribution
from lowcomm.store.rules import ChainRules, Policy
from lowcomm.store.run_file import JoinRequest
from lowcomm.store.watch import LEAST_GRACE_S, SILENT, Watch

REFUSALS = 2
"""Refused contributions after which a name has to wait for S versions before it is admitted again."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What a committer knows."""

    state: ChainState
    rules: ChainRules
    policy: Policy
    inc: str
    now: float
    held: Sequence[Contribution] = ()
    """Unsettled contributions of members, checked, by incarnation and number; of each the next ones without a gap."""
    bad: Mapping[str, str] = field(default_factory=dict)
    """Members whose next contribution can't be used, with the reason."""
    requests: Sequence[JoinRequest] = ()
    """Of those who may be admitted, in order of incarnations."""
    stop: bool = False
    """Whether somebody asked to stop the run."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a commit is to hold."""

    used: tuple[Used, ...]
    scale: float
    admit: tuple[Admitted, ...]
    remove: tuple[Removed, ...]
    stop: bool
    waited_s: float


def is_time(view: View, watch: Watch) -> bool:
    """Whether a commit may be made now, and it is this island's turn, whoever asks to join or to stop."""
    if not _may_be_made(view, watch):
        watch.ready_since, watch.due_at = None, _due_at(view, watch)
        return False
    waited_s, turn_s = watch.ready(view.now), turn(view) * watch.turn_s
    watch.due_at = view.now - waited_s + turn_s
    return waited_s >= turn_s


def _may_be_made(view: View, watch: Watch) -> bool:
    patient = view.now - watch.waiting_since >= view.policy.patience_s
    if patient or not view.state.members:
        return True
    remove = removals(view, watch)
    return bool(due(view, watch, [c for c in view.held if c.header.inc not in remove], remove)) or (
        bool(remove) and _nobody_else(view, remove)
    )


def _due_at(view: View, watch: Watch) -> float:
    """When a commit may be made though nothing more comes, on the island's clock."""
    policy, state = view.policy, view.state
    patient = watch.waiting_since + policy.patience_s
    if policy.rule is not None or policy.mode == "buffered":
        return patient
    if policy.mode == "timed":
        return min(watch.waiting_since + policy.every_s, patient)
    fresh = [c.header.key for c in view.held if state.staleness(c.header.fragment, c.header.base) == 0]
    first = min((watch.first_seen.get(key, view.now) for key in fresh), default=view.now)
    return min(first + watch.grace_s(state, policy), patient)


def decide(view: View, watch: Watch) -> Decision | None:
    """The commit that may be made now; None: wait."""
    remove = removals(view, watch)
    usable = [c for c in view.held if c.header.inc not in remove]
    fragments = due(view, watch, usable, remove)
    used = together(usable, fragments, view.rules)
    admit = admissions(view, watch, remove)
    patient = view.now - watch.waiting_since >= view.policy.patience_s
    first = view.state.version == 0 and _all_here(view, watch)
    members_only = bool(admit or remove or view.stop)
    if not used and not (members_only and (patient or first or _nobody_else(view, remove))):
        watch.ready_since = None
        return None
    if watch.ready(view.now) < turn(view) * watch.turn_s:
        return None
    weights, scale = judge.weigh(view.state, used, view.rules, view.policy)
    return Decision(
        used=tuple(
            Used(key=c.header.key, sha256=c.sha256, weight=w) for c, w in zip(used, weights, strict=True)
        ),
        scale=scale,
        admit=tuple(Admitted(inc=r.inc, name=r.name, base=r.base) for r in admit),
        remove=tuple(Removed(inc=inc, reason=why[:1000]) for inc, why in sorted(remove.items())),
        stop=view.stop,
        waited_s=view.now - watch.waiting_since,
    )  # fmt: skip


def removals(view: View, watch: Watch) -> dict[str, str]:
    """Members to put out, with the reason: what they sent can't be used, or they are silent."""
    found = dict(view.bad)
    found |= judge.too_large(view.state, view.held, view.policy.norm_bound)
    for inc, member in view.state.members.items():
        if inc == view.inc or inc in found:
            continue
        wanted = leases.wanted_of(view.state, member, view.rules)
        silent_s = watch.silent_s(inc, view.state, view.policy, view.now)
        if wanted and silent_s > 0:
            found[inc] = (
                f"{SILENT} {silent_s:.1f} s longer than 3 of its rounds and patience_s = {view.policy.patience_s:g}"
            )
    return found


def due(view: View, watch: Watch, usable: Sequence[Contribution], remove: Mapping[str, str]) -> set[int]:
    """Fragments that can be committed now."""
    fragments = {c.header.fragment for c in usable}
    return {f for f in fragments if _due(view, watch, [c for c in usable if c.header.fragment == f], remove)}


def _due(view: View, watch: Watch, here: Sequence[Contribution], remove: Mapping[str, str]) -> bool:
    policy, state = view.policy, view.state
    first = min(watch.first_seen.get(c.header.key, view.now) for c in here)
    if view.now - max(first, watch.waiting_since) >= policy.patience_s or view.stop:
        return True
    if policy.rule is not None:
        missing = _missing(view, here, remove)
        here = sorted(here, key=partial(_arrived, watch, view.now))
        now = judge.moment(state, here, missing, rules=view.rules, watch=watch, now_s=view.now)
        return policy.rule.due(now) or (state.closing and not missing)
    if policy.mode == "timed":
        return view.now - watch.waiting_since >= policy.every_s
    if policy.mode == "buffered":
        return len(here) >= policy.size or (state.closing and not _missing(view, here, remove))
    missing = _missing(view, here, remove)
    present = {c.header.inc for c in here}
    quorum = len(present) >= policy.quorum * (len(present) + len(missing))
    fresh = [c for c in here if state.staleness(c.header.fragment, c.header.base) == 0]
    times = [watch.first_seen.get(c.header.key, view.now) for c in fresh]
    # who comes just after a commit is there for the next one, but must not start the others' grace time
    late = bool(times) and view.now - min(times) >= watch.grace_s(state, policy)
    return not missing or (late and quorum)


def _arrived(watch: Watch, now: float, one: Contribution) -> tuple[float, str, int]:
    """The order in which contributions came."""
    return watch.first_seen.get(one.header.key, now), one.header.inc, one.header.seq


def _missing(view: View, here: Sequence[Contribution], remove: Mapping[str, str]) -> list[str]:
    """Members of whom a contribution to this fragment is still expected."""
    fragment, present = here[0].header.fragment, {c.header.inc for c in here}
    wanted = {inc: leases.wanted_of(view.state, m, view.rules) for inc, m in view.state.members.items()}
    return [inc for inc, of in wanted.items() if fragment in of and inc not in present and inc not in remove]


def prefixes(usable: Sequence[Contribution], fragments: set[int]) -> list[Contribution]:
    """Of each member the next contributions, up to the first to a fragment that is not due."""
    used: list[Contribution] = []
    blocked: set[str] = set()
    for one in usable:
        if one.header.fragment not in fragments:
            blocked.add(one.header.inc)
        if one.header.inc not in blocked:
            used.append(one)
    return used


def together(usable: Sequence[Contribution], fragments: set[int], rules: ChainRules) -> list[Contribution]:
    """What is used, so that each fragment has as many as the rule of aggregation needs."""
    while True:
        used = prefixes(usable, fragments)
        short = {f for f in fragments if sum(c.header.fragment == f for c in used) < rules.aggregator.fewest}
        if not short:
            return used
        fragments = fragments - short


def admissions(view: View, watch: Watch, remove: Mapping[str, str]) -> list[JoinRequest]:
    """Whom to let in: all who ask, unless nothing is left to give out or their last incarnations sent nonsense."""
    stays = set(view.state.members) - set(remove)
    if view.state.stopping or view.stop or (view.state.closing and stays):
        return []

    def waits(name: str) -> bool:
        times, version = watch.refused.get(name, (0, 0))
        return times >= REFUSALS and view.state.version <= version + view.rules.stale

    return [r for r in view.requests if not waits(r.name)]


def turn(view: View) -> int:
    """This island's place in the order in which committers try: it waits that many delays."""
    members = sorted(view.state.members, key=lambda inc: _order(view.state.version, inc))
    if view.inc in members:
        return members.index(view.inc)
    asking = sorted((r.inc for r in view.requests), key=lambda inc: _order(view.state.version, inc))
    return len(members) + (asking.index(view.inc) if view.inc in asking else len(asking))


def _order(version: int, inc: str) -> bytes:
    return hashlib.sha256(f"{version}:{inc}".encode()).digest()


def _all_here(view: View, watch: Watch) -> bool:
    """For the first commit: as many ask as the run starts with, or the grace time is over."""
    since = min((watch.first_seen.get(r.inc, view.now) for r in view.requests), default=view.now)
    grace = max(LEAST_GRACE_S, min(view.policy.patience_s, view.policy.expected_s / 4))
    return len(view.requests) >= view.policy.islands or view.now - since >= grace


def _nobody_else(view: View, remove: Mapping[str, str]) -> bool:
    """Whether no member that stays has anything to train: then waiting for contributions is in vain."""
    stay = [m for inc, m in view.state.members.items() if inc not in remove]
    return view.state.version > 0 and not any(leases.wanted_of(view.state, m, view.rules) for m in stay)
