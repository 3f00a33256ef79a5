"""Krum: its formula, who can win, the same choice on every shard and island, and what it does not go with."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowcomm_kernels.inner_products import LANES
from torch import Tensor, nn

from lowcomm.aggregate import NNM, Aggregate, Aggregator, Context, FedCPA, Krum, Mean, Median, TrimmedMean, Trust
from lowcomm.aggregate.table import gram_table
from lowcomm.codec import Codec, ErrorFeedback, Fp32, Int4, TopK
from lowcomm.config import RunConfig, SyncConfig
from lowcomm.config_check import check
from lowcomm.local import Objective, Scaffold
from lowcomm.model import LoRA, ModelConfig
from lowcomm.outer import SGD
from lowcomm.privacy import ClientGaussian
from lowcomm.sampling import FixedSize, Poisson, Sampling
from lowcomm.schedule import EveryStep, PostLocal, Schedule
from lowcomm.secure import SecureSum
from lowcomm.state.checkpoint import global_part, island_part, load_global, load_island
from lowcomm.state.cohort import Cohort
from lowcomm.state.fragment import Fragment
from lowcomm.sync import LocalSGD
from lowcomm.transport import Simulated
from lowcomm.types import ConfigError, Contribution, Delta, Round, SyncError, UnusableError
from tests.methods import name
from tests.support import toy
from tests.support.exchanging import carry

ROUND = Round(index=3, step=12, fragments=(0,), seed=1)


def deltas_of(count: int, seed: int, spread: float = 0.3) -> list[Delta]:
    """Deltas around a common one; the second tensor is larger than a row of lanes."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Delta:
        return {n: torch.randn(s, generator=generator) for n, s in (("w", (3, 5)), ("v", (LANES + 77,)), ("s", ()))}

    common = draw()
    return [{n: common[n] + spread * t for n, t in draw().items()} for _ in range(count)]


def contributions(deltas: Sequence[Delta], weights: Sequence[float] | None = None) -> list[Contribution]:
    shares = weights or [1 / len(deltas)] * len(deltas)
    return [
        Contribution(island=i, delta=d, weight=w, round=3) for i, (d, w) in enumerate(zip(deltas, shares, strict=True))
    ]


def flat(delta: Delta) -> Tensor:
    return torch.cat([t.reshape(-1) for t in delta.values()])


def wanted(deltas: Sequence[Delta], faulty: int, best: int, weights: Sequence[float]) -> tuple[list[int], Tensor]:
    """Those chosen, and their mean, from the definition: all distances in fp64."""
    rows = torch.stack([flat(d).double() for d in deltas])
    squares = (rows[:, None] - rows[None]).square().sum(dim=-1)
    near = squares.sort(dim=1).values[:, 1 : len(deltas) - faulty - 1].sum(dim=1)
    chosen = sorted(near.argsort(stable=True)[:best].tolist())
    shares = torch.tensor([weights[i] for i in chosen], dtype=torch.float64)
    return chosen, (rows[chosen] * (shares / shares.sum())[:, None]).sum(dim=0)


@pytest.mark.parametrize(("count", "faulty", "best"), [(3, 0, 1), (5, 1, 1), (7, 2, 3), (8, 1, 7), (9, 3, 6)])
def test_it_is_the_formula(count: int, faulty: int, best: int) -> None:
    for seed in range(3):
        deltas = deltas_of(count, seed)
        weights = [(i + 1) / (count * (count + 1) / 2) for i in range(count)]
        made = Krum(faulty=faulty, best=best, by="tokens").combine(
            contributions(deltas, weights), Context(start=deltas[0], round=ROUND)
        )
        chosen, mean = wanted(deltas, faulty, best, weights)
        torch.testing.assert_close(flat(made.delta).double(), mean, rtol=1e-5, atol=1e-6)
        rest = [i for i in range(count) if i not in chosen]
        assert made.notes == (
            f"Krum: chosen islands {', '.join(map(str, chosen))}; left out {', '.join(map(str, rest)) or 'none'}",
        )
        assert made.state == {}


def test_the_table_has_the_inner_products_and_equal_deltas_no_distance() -> None:
    deltas = deltas_of(4, 0)
    deltas[2] = {n: t.clone() for n, t in deltas[1].items()}
    table = gram_table(deltas)
    rows = torch.stack([flat(d).double() for d in deltas])
    torch.testing.assert_close(table, rows @ rows.T, rtol=1e-12, atol=1e-9)
    assert torch.equal(table, table.T)
    assert table[1, 1] == table[1, 2] == table[2, 2]


@given(st.permutations(range(6)), st.integers(1, 5))
@settings(max_examples=12, deadline=None)
def test_the_order_of_islands_changes_nothing(order: list[int], best: int) -> None:
    """Of the choice and its coefficients; the sum itself is made in island order, so to a rounding error."""
    deltas, rule = deltas_of(6, 1), Krum(faulty=1, best=best)
    one = rule.coefficients(gram_table(deltas), [1 / 6] * 6)
    other = rule.coefficients(gram_table([deltas[i] for i in order]), [1 / 6] * 6)
    assert other == [one[i] for i in order]


def test_ties_go_to_the_lower_number() -> None:
    deltas = [deltas_of(1, 0)[0]] * 5
    assert Krum(best=2).coefficients(gram_table(deltas), [0.2] * 5) == [0.5, 0.5, 0, 0, 0]


OUTLIERS: dict[str, Callable[[Delta], Delta]] = {
    "blown up": lambda d: {n: t * 1e3 for n, t in d.items()},
    "huge": lambda d: {n: torch.full_like(t, 3e38) for n, t in d.items()},
    "turned round": lambda d: {n: -t for n, t in d.items()},
    "nothing": lambda d: {n: torch.zeros_like(t) for n, t in d.items()},
}


@pytest.mark.parametrize("kind", OUTLIERS)
@pytest.mark.parametrize("faulty", [1, 2])
def test_outliers_never_win(kind: str, faulty: int) -> None:
    """f of them, all alike, so that they are close to each other; wherever they stand, for any legal m."""
    count = 2 * faulty + 3
    for places in itertools.combinations(range(count), faulty):
        deltas = deltas_of(count, 7)
        bad = OUTLIERS[kind](deltas[places[0]])
        deltas = [bad if i in places else d for i, d in enumerate(deltas)]
        for best in range(1, count - faulty + 1):
            found = Krum(faulty=faulty, best=best).coefficients(gram_table(deltas), [1 / count] * count)
            assert all(found[i] == 0 for i in places), (best, found)
            assert sum(c != 0 for c in found) == best


@pytest.mark.parametrize("by", ["tokens", "uniform"])
def test_without_faulty_islands_and_with_all_of_them_it_is_the_mean(by: str) -> None:
    deltas = deltas_of(5, 2)
    mean, rule = Mean(by=by), Krum(faulty=0, best=5, by=by)  # type: ignore[arg-type]
    weights = mean.weights([3.0, 1.0, 4.0, 1.0, 5.0])
    assert rule.weights([3.0, 1.0, 4.0, 1.0, 5.0]) == weights
    assert torch.equal(flat(rule(contributions(deltas, weights))), flat(mean(contributions(deltas, weights))))


def test_a_shard_alone_may_choose_otherwise_and_together_they_choose_as_one() -> None:
    """Two ranks as threads: each holds half of every Delta, and their tables are added at a barrier."""
    deltas = deltas_of(5, 3)
    for i, d in enumerate(deltas):
        d["w"][0] += 10 * (i in (0, 1))  # only the first rank sees these two apart, as far as they are from the others
    half = 5
    shards = [[{n: t.reshape(-1)[a:b] for n, t in d.items()} for d in deltas] for a, b in ((0, half), (half, None))]
    shards = [[{n: t for n, t in d.items() if t.numel()} for d in shard] for shard in shards]
    rule, whole = Krum(best=2), Krum(best=2).coefficients(gram_table(deltas), [0.2] * 5)
    barrier, tables, notes = threading.Barrier(2, timeout=60), [torch.empty(0)] * 2, [""] * 2

    def rank(number: int) -> None:
        def sum_ranks(table: Tensor) -> Tensor:
            tables[number] = table
            barrier.wait()
            return tables[0] + tables[1]

        context = Context(start=shards[number][0], round=ROUND, sum_ranks=sum_ranks)
        notes[number] = rule.combine(contributions(shards[number]), context).notes[0]

    threads = [threading.Thread(target=rank, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    chosen = ", ".join(str(i) for i, c in enumerate(whole) if c)
    assert notes[0] == notes[1]
    assert notes[0].startswith(f"Krum: chosen islands {chosen};")
    alone = [rule.coefficients(gram_table(shard), [0.2] * 5) for shard in shards]
    assert alone[0] != whole  # or this test would show nothing


class OneIsHeardBroken(Simulated):
    """Says, as another process might, that the payload of island 1 did not arrive as it was sent."""

    def gather(self, rows: Sequence[Tensor]) -> Tensor:
        table = super().gather(rows)
        if rows[0].dtype == torch.uint8 and rows[0].numel() == self.islands:
            table[:, 1] = 1
        return table


def test_a_rule_is_asked_once_after_all_agreed_on_the_contributions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that see nothing wrong would otherwise sum their tables while another one, which does, waits to agree."""
    asked: list[list[int]] = []
    plain = Krum.combine

    def combine(rule: Krum, found: Sequence[Contribution], context: Context) -> Aggregate:
        asked.append([c.island for c in found])
        return plain(rule, found, context)

    monkeypatch.setattr(Krum, "combine", combine)
    fragment = Fragment({"w": torch.empty(40)}, 4, torch.device("cpu"))
    deltas = [torch.randn(fragment.size) for _ in range(4)]
    roll = Cohort(weights=[0.25] * 4, tokens=[1.0] * 4, dropped={}, norms=[1.0] * 4)
    done = carry(fragment, deltas, OneIsHeardBroken(4), Fp32(), Krum(faulty=0), [{}] * 4, roll, ROUND)
    assert asked == [[0, 2, 3]]
    assert done.cohort.weights == [1 / 3, 0, 1 / 3, 1 / 3]


def islands_of(count: int, codec: Codec, rule: Aggregator) -> LocalSGD:
    models = [toy.Net() for _ in range(count)]
    return LocalSGD(
        models,
        [toy.adamw(m) for m in models],
        every=toy.EVERY,
        outer=SGD(lr=1.0),
        codec=codec,
        aggregator=rule,
        transport=Simulated(count),
    )


CODECS = (Fp32(), ErrorFeedback(codec=Int4(exchange="gather")), ErrorFeedback(codec=TopK(chunk=64, k=8)))


@pytest.mark.parametrize("codec", CODECS, ids=["fp32", "int4", "top-k"])
def test_a_round_leaves_the_faulty_island_out_and_says_so(codec: Codec) -> None:
    sync = islands_of(5, codec, Krum(faulty=1, best=3))
    notes: list[str] = []
    sync.listeners.append(lambda report: notes.extend(report.notes))
    for step in range(2 * toy.EVERY):
        toy.train_step(sync, step)
        if step % toy.EVERY == toy.EVERY - 2:
            with torch.no_grad():
                sync.replicas[2].params["last.weight"].add_(50.0)
    told = [n for n in notes if "Krum" in n]
    assert [n.split(":")[0] for n in told] == ["round 0", "round 1"]
    assert all("2" in n.split("left out ")[1] for n in told)
    assert all(float(t.abs().max()) < 10 for t in sync.weights().values())


@pytest.mark.parametrize(
    ("islands", "rule", "blown_up"),
    [
        (3, TrimmedMean(faulty=1), 1),
        (3, NNM(faulty=1) | TrimmedMean(faulty=1), 1),
        (4, FedCPA(), 1),  # the gate leaves it three
        (3, FedCPA(), None),
        (3, Trust(), None),
        (3, Krum(faulty=0, best=3), None),
    ],
    ids=name,
)
def test_the_norm_gate_gives_way_only_to_rules_that_withstand_a_blow_up(
    islands: int, rule: Aggregator, blown_up: int | None
) -> None:
    """None: too few are left, and nothing is committed; a mean of all would be a million times too large."""
    sync = islands_of(islands, Fp32(), rule)

    def steps() -> None:
        for step in range(toy.EVERY):
            if step == toy.EVERY - 1:
                with torch.no_grad():
                    sync.replicas[1].params["last.weight"].mul_(1e6)
            toy.train_step(sync, step)

    if blown_up is None:
        with pytest.raises(UnusableError, match=r"round 0 has 2 contributions, and \w+ needs 3; island 1: the norm"):
            steps()
    else:
        steps()
    assert all(float(t.abs().max()) < 10 for t in sync.weights().values())


@pytest.mark.parametrize("codec", CODECS[1:], ids=["int4", "top-k"])
def test_it_goes_on_from_a_checkpoint_with_the_same_bits(codec: Codec) -> None:
    def build() -> LocalSGD:
        return islands_of(5, codec, Krum(faulty=1, best=2))

    whole, saved, fresh = build(), build(), build()
    for step in range(toy.STEPS):
        toy.train_step(whole, step)
    for step in range(toy.EVERY + 2):
        toy.train_step(saved, step)
    load_global(fresh.state, global_part(saved.state))
    for i in range(5):
        load_island(fresh.state, i, island_part(saved.state, i))
    for step in range(toy.EVERY + 2, toy.STEPS):
        toy.train_step(fresh, step)
    whole.finish()
    fresh.finish()
    assert all(torch.equal(w, fresh.weights()[n]) for n, w in whole.weights().items())


def test_a_round_with_too_few_contributions_commits_nothing() -> None:
    """Five islands of which one is unusable, then all are well again."""
    sync = islands_of(5, Fp32(), Krum(faulty=1))
    before = {n: w.clone() for n, w in sync.weights().items()}
    for step in range(toy.EVERY - 1):
        toy.train_step(sync, step)
    kept = sync.replicas[4].params["scale"].detach().clone()
    with torch.no_grad():
        sync.replicas[4].params["scale"].fill_(torch.nan)
    with pytest.raises(SyncError, match=r"4 contributions, and Krum needs 5; island 4: .*not finite.*Nothing was"):
        sync.sync((0,))
    assert all(torch.equal(before[n], w) for n, w in sync.weights().items())
    with torch.no_grad():
        sync.replicas[4].params["scale"].copy_(kept)
    sync.sync((0,))
    assert not all(torch.equal(before[n], w) for n, w in sync.weights().items())


@pytest.mark.parametrize(
    ("rule", "islands", "message"),
    [
        (Krum(faulty=1), 4, r"sync\.aggregator\.faulty = 1 .* 5 islands, there are 4. Fix: set it to 0"),
        (Krum(faulty=1), 4, r"sync\.aggregator\.faulty = 1 .* Fix: set it to 0, or start 5"),
        (Krum(faulty=3), 8, r"sync\.aggregator\.faulty = 3 .* Fix: set it to 2 or less, or start 9"),
        (Krum(faulty=0), 2, r"sync\.aggregator\.faulty = 0 .* Fix: start 3 islands"),
        (Krum(faulty=1, best=5), 5, r"sync\.aggregator\.best = 5 .* = 4"),
        (Krum(faulty=-1), 5, r"sync\.aggregator\.faulty = -1"),
        (Krum(faulty=1.5), 8, r"sync\.aggregator\.faulty = 1\.5"),  # type: ignore[arg-type]
        (Krum(best=0), 5, r"sync\.aggregator\.best = 0"),
        (Krum(by="size"), 5, r"sync\.aggregator\.by = 'size'"),  # type: ignore[arg-type]
    ],
)
def test_settings_out_of_range_are_refused(rule: Krum, islands: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check(RunConfig(sync=SyncConfig(aggregator=rule)), islands)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": EveryStep()}, r"sync\.schedule = EveryStep .*Krum.* Fix: use EveryH"),
        ({"schedule": PostLocal(warmup_steps=2)}, r"sync\.schedule = PostLocal"),
        ({"objective": Scaffold()}, r"sync\.objective = Scaffold .* Fix: use FedProx"),
        ({"sampling": Poisson(rate=0.9)}, r"sync\.sampling = Poisson .* Fix: use FixedSize\(count=5\)"),
        ({"sampling": FixedSize(count=4)}, r"sync\.sampling\.count = 4 .* Fix: 5 or more"),
        ({"codec": Int4()}, r"exchange = 'reduce' .* Fix: .*'gather'"),
        ({"privacy": ClientGaussian()}, r"sync\.aggregator = Krum .* Fix: use Mean"),
        ({"secure": SecureSum()}, r"sync\.aggregator = Krum .* Fix: use Mean"),
    ],
    ids=["ddp", "post-local", "scaffold", "poisson", "few sampled", "reduced", "private", "secure"],
)
def test_what_would_go_round_it_is_refused(
    changes: dict[str, Schedule | Objective | Sampling | Codec], message: str
) -> None:
    sync = SyncConfig(aggregator=Krum(faulty=1), **changes)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message) as caught:
        check(RunConfig(sync=sync), 6)
    assert "\n" not in str(caught.value)
    check(RunConfig(sync=SyncConfig(aggregator=Krum(faulty=1), sampling=FixedSize(count=5))), 6)


def test_buffers_that_islands_average_and_lone_lora_factors_are_refused() -> None:
    """In a recipe and in a loop of one's own."""
    tuned = RunConfig(model=ModelConfig(tuning=LoRA(rank=2)), sync=SyncConfig(aggregator=Median()))
    with pytest.raises(ConfigError, match=r"model\.tuning = LoRA .*Median.* Fix: use a rule that picks or weighs"):
        check(tuned, 5)
    check(dataclasses.replace(tuned, sync=SyncConfig(aggregator=Krum(faulty=1))), 5)

    def loop(model: Callable[[], nn.Module], **settings: object) -> LocalSGD:
        models = [model() for _ in range(5)]
        inners = [torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.1) for m in models]
        return LocalSGD(models, inners, every=2, aggregator=Krum(), transport=Simulated(5), **settings)  # type: ignore[arg-type]

    class Tuned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.ModuleDict({"lora_A": nn.ModuleDict({"default": nn.Linear(3, 2, bias=False)})})

    with pytest.raises(ConfigError, match=r"layer is exchanged with one of its LoRA factors only"):
        loop(Tuned)
    with pytest.raises(ConfigError, match=r"buffers is not allowed with .*Krum.*running_mean.* Fix: keep them local"):
        loop(lambda: nn.BatchNorm1d(3), buffers={"running_mean": "average", "*": "local"})
    loop(lambda: nn.BatchNorm1d(3), buffers={"*": "local"})
