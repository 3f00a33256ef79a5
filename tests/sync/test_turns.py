"""Clients that take turns on one model give the bits of a model each, for every method with which they can."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import lowcomm as lc
from lowcomm.codec import ErrorFeedback, Fp32, LocalResidual, TopK
from lowcomm.config import SyncConfig
from lowcomm.exchange.gossip import Gossip
from lowcomm.local import Scaffold
from lowcomm.outer import SGD, Nesterov
from lowcomm.sampling import FixedSize
from lowcomm.schedule import Streaming
from lowcomm.state.client import Client
from lowcomm.state.spec import Clients, SyncSpec
from lowcomm.sync import LocalSGD
from lowcomm.sync.turns import against_turns
from lowcomm.transport import Simulated
from tests.golden_rounds import EVERY, ISLANDS, STEPS, Loop, fill, loops, set_gradients, sha256

SAMPLED = SyncConfig(sampling=FixedSize(count=2))


def spec_of(loop: Loop) -> SyncSpec:
    """The spec that the loop's LocalSGD has."""
    given = {"every": EVERY, "outer": Nesterov(lr=0.7, momentum=0.6), "seed": 7, **loop.settings}
    return SyncSpec(**{k: v for k, v in given.items() if v is not None}, clients=loop.clients.clients)


def run(loop: Loop, turns: bool, seen: list[Any], steps: int = STEPS) -> LocalSGD:
    """The loop to its end; `seen` gets the global weights after every round."""
    spec = spec_of(loop)
    models = [loop.model() for _ in range(1 if turns else ISLANDS)]
    inners = [loop.inner.build(models[0 if turns else i]) for i in range(ISLANDS)]
    sync = LocalSGD.of(spec, models, inners, transport=Simulated(ISLANDS), turns=turns)
    sync.listeners.append(lambda report: seen.append((sha256(sync.weights()), report.delta_norms, report.weights)))
    for step in range(steps):
        for i in range(ISLANDS):
            if sync.rests(i):
                sync.rest(i)
                continue
            sync.take_turn(i, train=True)
            set_gradients(models[0 if turns else i], i, step)
            sync.count_tokens(4 + i, i)
            sync.count_loss(1 + i / 8, i)
            inners[i].step()
            inners[i].zero_grad()
    return sync


def tensors_of(key: str, value: Any) -> dict[str, torch.Tensor]:
    """One moment, or one per axis (Soap)."""
    values = [v for v in (value if isinstance(value, list) else [value]) if v is not None]
    return {f"{key} {i}": torch.as_tensor(v) for i, v in enumerate(values)}


def state_of(sync: LocalSGD) -> list[Any]:
    """Each island's weights, moments, codec state and bytes."""
    found: list[Any] = []
    for i, replica in enumerate(sync.replicas):
        moments = [sorted((k, sha256(tensors_of(k, v))) for k, v in s.items()) for s in replica.inner.state.values()]
        codec = [sha256(dict(s)) for s in sync.state.codec_states[i]]
        own = sha256(replica.held), sync.transport.sent_bytes[i], sync.transport.received_bytes[i]
        found.append((*own, replica.steps, replica.tokens, moments, codec))
    return found


def fits() -> dict[str, Loop]:
    """Of the golden cases, and some with sampled clients, those that can take turns."""
    feedback = ErrorFeedback(codec=TopK(chunk=64, k=8))
    more = {
        "sampled, plain": Loop(settings={"outer": SGD(lr=1.0)}, clients=SAMPLED),
        "sampled, error feedback": Loop(settings={"codec": feedback}, clients=SAMPLED),
        "sampled, scaffold": Loop(settings={}, clients=SyncConfig(sampling=FixedSize(count=2), objective=Scaffold())),
        "sampled, fresh": Loop(settings={}, clients=SyncConfig(sampling=FixedSize(count=2), fresh_inner=True)),
        "fresh": Loop(settings={}, clients=SyncConfig(fresh_inner=True)),
    }
    cases = loops()
    for key in ("lora FedSA(rank=4)", "lora codec Shared()", "lora FedEx(rank=4)"):
        if key in cases:
            more[f"sampled, {key}"] = Loop(settings=cases[key].settings, model=cases[key].model, clients=SAMPLED)
    return {key: loop for key, loop in (cases | more).items() if against_turns(spec_of(loop)) is None}


ALWAYS = ("sampled", "objective", "fresh", "privacy ClientGaussian", "attack Replay", "lora FedSA", "lora codec Shared")


@pytest.mark.parametrize("case", fits())
def test_turns_give_the_bits_of_a_model_each(case: str, long: bool) -> None:
    """Global weights after every round, what each island ends with, and counted bytes."""
    if not long and not case.startswith(ALWAYS) and sum(map(ord, case)) % 5:
        pytest.skip("long: make test-long runs it")
    loop = fits()[case]
    apart: list[Any] = []
    together: list[Any] = []
    whole, turns = run(loop, False, apart), run(loop, True, together)
    assert together == apart
    assert len(apart) >= 2, "rounds were compared"
    assert state_of(turns) == state_of(whole)


def test_who_sits_out_has_nothing_of_its_own() -> None:
    loop = Loop(settings={"outer": SGD(lr=1.0), "codec": ErrorFeedback(codec=TopK(chunk=64, k=8))}, clients=SAMPLED)
    sync = run(loop, True, [], steps=EVERY + 1)
    first, now = spec_of(loop).sampled(ISLANDS, 0), spec_of(loop).sampled(ISLANDS, 1)
    assert first is not None and now is not None and first != now
    shared = sync.state.shared_codec_states[0]
    for i, replica in enumerate(sync.replicas):
        assert isinstance(replica, Client)
        assert replica.idle == (i not in now)
        assert bool(replica.inner.state) == (i in first | now)
        assert (sync.state.codec_states[i][0] is shared) == (i not in first)


def test_frozen_weights_are_one_tensor_for_all() -> None:
    """Those that train have tensors of their own for what is trained, and for nothing else."""
    cases = {key: loop for key, loop in fits().items() if key.startswith("lora FedIT")}
    sync = run(next(iter(cases.values())), True, [], steps=1)
    frozen = {p.data_ptr() for p in sync.replicas[0].model.parameters() if not p.requires_grad}
    assert len({id(r.model) for r in sync.replicas}) == 1 and frozen
    held = [{t.data_ptr() for t in r.held.values()} for r in sync.replicas]
    assert all(not a & b for i, a in enumerate(held) for b in held[:i])


def test_a_step_outside_a_turn_is_refused() -> None:
    """It would train another client's weights, or everybody's."""
    model = fill(nn.Linear(2, 2))
    inners = [torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2)]
    sync = LocalSGD.of(SyncSpec(every=4), [model], inners, transport=Simulated(2), turns=True)
    model(torch.ones(1, 2)).sum().backward()
    for wrong in (lambda: None, lambda: sync.take_turn(1), lambda: sync.take_turn(1, train=True)):
        wrong()
        with pytest.raises(lc.SyncError, match="outside its turn"):
            inners[0].step()
    sync.take_turn(0, train=True)
    inners[0].step()


@pytest.mark.parametrize(
    ("settings", "clients", "reason"),
    [
        ({"schedule": Streaming(fragments=2, delay=0)}, Clients(), "begin every round"),
        ({"codec": LocalResidual(codec=TopK(chunk=64, k=8))}, Clients(), "not sent"),
        ({"exchange": Gossip()}, Clients(), "of its own"),
        ({"buffers": {"*": "local"}}, Clients(), "buffers"),
        ({"codec": Fp32()}, Clients(), None),
    ],
)
def test_who_cannot_take_turns(settings: dict[str, Any], clients: Clients, reason: str | None) -> None:
    found = against_turns(SyncSpec(every=4, clients=clients, **settings))
    assert found is None if reason is None else found is not None and reason in found


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"schedule": Streaming(fragments=2, delay=0)}, "use EveryH"), ({"exchange": Gossip()}, "leave it out")],
)
def test_where_rounds_cannot_begin_with_fresh_moments(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(lc.ConfigError, match=rf"^clients\.fresh_inner = True is not allowed with .*{message}$"):
        lc.LocalSGD(model := fill(nn.Linear(2, 2)), torch.optim.SGD(model.parameters()), every=4,
                    clients=Clients(fresh_inner=True), **settings)  # fmt: skip


def test_a_model_that_is_given_twice_is_refused() -> None:
    """Turns are asked for: two islands with one model by mistake would train each other's weights."""
    model = nn.Linear(2, 2)
    inners = [torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2)]
    with pytest.raises(lc.CoverageError, match="also another island's"):
        lc.LocalSGD([fill(model), model], inners, every=2)
