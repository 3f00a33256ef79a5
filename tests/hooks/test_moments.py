"""Averaged moments (DES-LOC): when, with which weights, what it reduces to, resume, and what it does not go with."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lowcomm.aggregate import Krum, Mean
from lowcomm.config import SyncConfig
from lowcomm.exchange.gossip import Gossip
from lowcomm.local import DesLoc
from lowcomm.outer import SGD
from lowcomm.privacy import ClientGaussian
from lowcomm.schedule import OneStepDelay
from lowcomm.secure import SecureSum
from lowcomm.state.spec import Clients
from lowcomm.sync import LocalSGD
from lowcomm.sync.compatibility import check_spec
from lowcomm.sync.turns import against_turns
from lowcomm.types import ConfigError
from tests.support import toy


def build(moments: DesLoc | None, islands: int = 2, every: int = 4, **settings: Any) -> LocalSGD:
    models = [toy.Net() for _ in range(islands)]
    clients = Clients(moments=moments)
    return LocalSGD(models, [toy.adamw(m) for m in models], every=every, clients=clients, **settings)


def moments(sync: LocalSGD, key: str) -> list[torch.Tensor]:
    """By island, flat."""
    return [toy.flat([r.inner.state[p][key] for p in r.params.values()]) for r in sync.replicas]


def test_each_moment_is_averaged_at_its_own_period_with_the_rounds_weights() -> None:
    sync = build(DesLoc(first_every=1, second_every=2))
    for step in range(4):
        toy.train_step(sync, step)
    first, second = moments(sync, "exp_avg"), moments(sync, "exp_avg_sq")
    assert torch.equal(first[0], first[1])
    assert not torch.equal(second[0], second[1])
    for step in range(4, 8):
        toy.train_step(sync, step)
    second = moments(sync, "exp_avg_sq")
    assert torch.equal(second[0], second[1])


def test_the_average_is_weighted_by_tokens() -> None:
    alone, sync = build(None), build(DesLoc(first_every=1, second_every=None))
    for step in range(4):
        toy.train_step(alone, step)
        toy.train_step(sync, step)
    own = moments(alone, "exp_avg")
    torch.testing.assert_close(moments(sync, "exp_avg")[0], (own[0] * 4 + own[1] * 5) / 9)


def test_off_it_is_diloco_bit_for_bit() -> None:
    assert toy.trajectory(build(DesLoc(first_every=None, second_every=None)))[:-1] == toy.trajectory(build(None))[:-1]


def test_after_a_round_of_local_adam_islands_have_one_state() -> None:
    """Weights, first and second moments averaged at once with outer SGD of rate 1: islands can't be told apart."""
    sync = build(DesLoc(first_every=1, second_every=1), outer=SGD(lr=1.0))
    for step in range(4):
        toy.train_step(sync, step)
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(*moments(sync, key))
    assert torch.equal(*(toy.flat(list(r.params.values())) for r in sync.replicas))


def test_bytes_are_counted() -> None:
    counts = [toy.trajectory(build(m))[-1] for m in (None, DesLoc(first_every=1, second_every=1))]
    plain, averaged = (int(text.split(":")[1]) for text in counts)
    assert averaged > 2.2 * plain  # three sums for one, beside roll calls and digests


@pytest.mark.parametrize(
    ("moments_", "settings", "words"),
    [
        (DesLoc(first_every=0), {}, r"moments\.first_every = 0"),
        (DesLoc(second_every=-2), {}, r"moments\.second_every = -2"),
        (DesLoc(), {"exchange": Gossip()}, "second exchange of all islands"),
        (DesLoc(), {"schedule": OneStepDelay()}, "training would wait"),
        (DesLoc(), {"aggregator": Krum(faulty=0)}, "plain mean over all islands"),
        (
            DesLoc(),
            {"privacy": ClientGaussian(), "quorum": 1.0, "aggregator": Mean(by="uniform")},
            "without noise or masks",
        ),
    ],
)
def test_refused(moments_: DesLoc, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(moments_, islands=3, **settings)


def test_fresh_moments_are_refused_and_islands_have_a_model_each() -> None:
    both = SyncConfig(moments=DesLoc(), fresh_inner=True)
    with pytest.raises(ConfigError, match="begin anew"):
        check_spec(both.spec())
    assert "inner optimizer" in str(against_turns(SyncConfig(moments=DesLoc()).spec()))


def test_masks_are_refused() -> None:
    models = [toy.Net() for _ in range(3)]
    clients = Clients(moments=DesLoc(), secure=SecureSum())
    with pytest.raises(ConfigError, match="without noise or masks"):
        LocalSGD(models, [toy.adamw(m) for m in models], every=4, clients=clients)
