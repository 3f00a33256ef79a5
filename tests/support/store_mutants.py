"""The protocol's rules, left out of the product one at a time: a rule whose absence the checker does not notice is not
needed, or the checker is blind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

from lowcomm.store import garbage, keys, lookout, valid
from lowcomm.store.applied import Applied
from lowcomm.store.chain_state import ChainState
from lowcomm.store.commit import Commit
from lowcomm.store.contribution import Header
from lowcomm.store.island import StoreIsland
from lowcomm.store.objects import Answer, Objects
from lowcomm.store.own_work import OwnWork, Work
from lowcomm.store.payloads import Payloads
from lowcomm.store.rules import ChainRules
from tests.support.store_checker import ViolationError, World
from tests.support.store_toy import ToyIsland


class Mutant(NamedTuple):
    """A rule that is left out."""

    meaning: str
    applied: Callable[[], AbstractContextManager[Any]]
    exact: bool = True
    """Whether the store creates each key once."""
    own: bool | None = None
    """The kind of data with which the rule is needed most; None: either."""


class Found(NamedTuple):
    """What the checker says about a mutant."""

    histories: int
    seed: int | None
    """Of the first history that breaks; None: it was not noticed."""
    violation: ViolationError | None


def hunt(name: str, histories: int, first_seed: int = 0) -> Found:
    """Histories with a mutant until one breaks."""
    mutant = MUTANTS[name]
    for k in range(histories):
        try:
            with mutant.applied():
                World(first_seed + k, exact=mutant.exact, own=mutant.own).run()
        except ViolationError as violation:
            return Found(k + 1, first_seed + k, violation)
    return Found(histories, None, None)


@contextmanager
def nothing() -> Iterator[None]:
    """The product as it is."""
    yield


def gc_commits() -> AbstractContextManager[Any]:
    collect = garbage.collect

    def mutated(objects: Objects, state: ChainState, rules: ChainRules) -> int:
        old = [one.key for one in objects.list(keys.COMMITS) if one.key < keys.commit(state.version - 1)]
        objects.delete(old)
        return collect(objects, state, rules)

    return patch.object(garbage, "collect", mutated)


@contextmanager
def apply_own() -> Iterator[None]:
    follow, early = StoreIsland.follow, dict[int, list[Applied]]()

    def put_commit(island: StoreIsland, commit: Commit) -> None:
        raw = commit.write()
        if island.objects.put_new(keys.commit(commit.v), raw) == Answer.EXISTS:
            return
        held = island.follower.payloads.fetch_all(valid.keys_of(island.state, raw, island.rules))
        if held is not None:
            early.setdefault(id(island), []).append(island.take(island.follower.apply(raw, held)))

    def followed(island: StoreIsland) -> list[Applied]:
        return early.pop(id(island), []) + follow(island)

    with patch.object(StoreIsland, "put_commit", put_commit), patch.object(StoreIsland, "follow", followed):
        yield


@contextmanager
def skip_missing() -> Iterator[None]:
    check = valid.check

    def some(payloads: Payloads, wanted: Any) -> Any:
        found = {key: payloads.fetch(key) for key in wanted}
        return {key: one for key, one in found.items() if one is not None}

    def mutated(state: ChainState, raw: bytes, held: Any, rules: ChainRules) -> Any:
        commit = Commit.read(raw)
        used = tuple(u for u in commit.used if u.key in held)
        return check(state, dataclasses.replace(commit, used=used).write(), held, rules)

    with patch.object(Payloads, "fetch_all", some), patch.object(valid, "check", mutated):
        yield


@contextmanager
def no_fence() -> Iterator[None]:
    following, sequence, blocks = lookout.next_of, valid.check_sequence, valid.check_blocks
    unsettled = lookout.is_unsettled

    def anybody(state: ChainState, inc: str, seq: int) -> bool:
        return inc not in state.members or unsettled(state, inc, seq)

    def next_of(state: ChainState, inc: str) -> tuple[int, set[int]]:
        return following(state, inc) if inc in state.members else (1, set(range(1000)))

    def check_sequence(settled: dict[str, int], header: Header) -> None:
        if header.inc in settled:
            sequence(settled, header)

    def check_blocks(leases: dict[str, set[int]], header: Header, rules: ChainRules) -> None:
        if header.inc in leases:
            blocks(leases, header, rules)

    with ExitStack() as stack:
        stack.enter_context(patch.object(lookout, "is_unsettled", anybody))
        stack.enter_context(patch.object(lookout, "next_of", next_of))
        stack.enter_context(patch.object(valid, "check_author", lambda state, header: None))
        stack.enter_context(patch.object(valid, "check_sequence", check_sequence))
        stack.enter_context(patch.object(valid, "check_blocks", check_blocks))
        yield


@contextmanager
def no_seq() -> Iterator[None]:
    def check_sequence(settled: dict[str, int], header: Header) -> None:
        settled[header.inc] = header.seq

    with ExitStack() as stack:
        stack.enter_context(patch.object(lookout, "is_unsettled", lambda state, inc, seq: inc in state.members))
        stack.enter_context(patch.object(lookout, "next_of", lambda state, inc: (1, set(state.members[inc].lease))))
        stack.enter_context(patch.object(valid, "check_sequence", check_sequence))
        stack.enter_context(patch.object(valid, "check_blocks", lambda leases, header, rules: None))
        yield


@contextmanager
def readmit() -> Iterator[None]:
    check = valid.check_admitted

    def mutated(state: ChainState, commit: Commit, rules: ChainRules) -> None:
        check(dataclasses.replace(state, gone={}), commit, rules)

    with patch.object(lookout, "may_join", lambda state, inc: inc not in state.members):
        with patch.object(valid, "check_admitted", mutated):
            yield


@contextmanager
def resend() -> Iterator[None]:
    encode = OwnWork.encode

    def mutated(self: OwnWork, state: ChainState, fragment: int, delta: Any, work: Work) -> Any:
        waiting = self.outstanding(fragment)
        if waiting is not None:
            delta = delta + waiting
            work = dataclasses.replace(work, blocks=tuple(sorted({*work.blocks, *self.blocks()})))
        return encode(self, state, fragment, delta, work)

    with patch.object(OwnWork, "encode", mutated):
        with patch.object(valid, "check_blocks", lambda leases, header, rules: None):
            yield


@contextmanager
def keep_work() -> Iterator[None]:
    heal = ToyIsland.heal

    def mutated(toy: ToyIsland) -> None:
        kept = list(toy.unsent)
        heal(toy)
        if toy.inc == toy.island.inc and toy.local:
            for block in kept:
                toy.train(block)

    with patch.object(ToyIsland, "heal", mutated):
        with patch.object(valid, "check_blocks", lambda leases, header, rules: None):
            yield


def early_gc() -> AbstractContextManager[Any]:
    return patch.object(garbage, "oldest_base", lambda state, rules: state.version)


MUTANTS = {
    "overwrite": Mutant("the store ignores the condition of a create", nothing, exact=False),
    "gc_commits": Mutant("old commits are deleted like old payloads", gc_commits),
    "apply_own": Mutant("a committer applies its own commit without reading it back", apply_own),
    "skip_missing": Mutant("an island leaves out a committed payload that it cannot read", skip_missing),
    "no_fence": Mutant("contributions of incarnations that were removed are used", no_fence),
    "no_seq": Mutant("a contribution may be used by two commits", no_seq),
    "readmit": Mutant("an incarnation that was removed may be admitted again", readmit, own=True),
    "resend": Mutant("work of a late contribution is sent again in the next one, and no ledger refuses it", resend),
    "keep_work": Mutant("an island that was removed keeps its unsent work when it joins again", keep_work, own=False),
    "early_gc": Mutant("payloads are deleted before a snapshot that covers them was announced", early_gc),
}
