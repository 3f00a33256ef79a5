"""HetLoRA's regulariser of the local loss: its gradient, its reductions, what it does to a round, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lowcomm.aggregate import Mean
from lowcomm.aggregate.lora import FFA, Adapter, FedIT, HetLoRA, LoraRule
from lowcomm.aggregate.lora.hetlora import kept, pruned, tail
from lowcomm.local import FedProx, Objective, RankDecay, Scaffold
from lowcomm.local.rank_decay import pairs
from lowcomm.model import LoRA
from lowcomm.state.spec import Clients
from lowcomm.sync import LocalSGD
from lowcomm.types import ConfigError
from tests.support import lora_toy, toy

A, B = "m.q.lora_A.default.weight", "m.q.lora_B.default.weight"


def factors(rank: int, own: int, seed: int) -> dict[str, Tensor]:
    """A of `own` rows and zeros behind, B alike, an embedding's pair without a tail, and a bias."""
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, 6, generator=g), torch.randn(5, rank, generator=g)
    a[own:], b[:, own:] = 0, 0
    one = {"e.lora_embedding_A.default": torch.ones(1, 9), "e.lora_embedding_B.default": torch.ones(4, 1)}
    return {A: a, "bias": torch.ones(3), B: b, **one}


@pytest.mark.parametrize("gamma", [0.99, 0.75, 0.4, 0.1])
@pytest.mark.parametrize(("rank", "own"), [(8, 8), (8, 3), (4, 1), (2, 2), (1, 1)])
def test_its_gradient_is_that_of_the_papers_term(rank: int, own: int, gamma: float) -> None:
    local = factors(rank, own, seed=rank + own)
    a, b = (local[n].double().requires_grad_() for n in (A, B))
    first = kept(own, gamma)  # what the aggregation's side would prune
    (b[:, first:own].norm() * a[first:own].norm() * 0.3).backward()
    grads = {n: torch.full_like(w, 0.5) for n, w in local.items()}
    RankDecay(strength=0.3, gamma=gamma).correct(grads, local, {}, {})
    for name, wanted in ((A, a), (B, b)):
        expected = 0.5 + torch.nan_to_num(wanted.grad if wanted.grad is not None else torch.zeros_like(wanted))
        torch.testing.assert_close(grads[name].double(), expected, rtol=1e-5, atol=1e-6)
    assert all(bool((grads[n] == 0.5).all()) for n in grads if n not in (A, B))
    assert first == own or bool((grads[A] != 0.5).any())


def test_a_tail_of_zeros_pulls_at_nothing_and_resting_factors_rest() -> None:
    local = factors(4, 4, seed=0)
    local[B].zero_()  # as at the start
    for size, strength in ((1.0, 1.0), (100.0, 1e-3), (1.0, 100.0)):
        large = {**local, A: size * local[A]}
        grads = {A: torch.zeros_like(local[A]), B: torch.zeros_like(local[B])}
        RankDecay(strength=strength, gamma=0.5).correct(grads, large, {}, {})
        assert torch.equal(grads[A], torch.zeros_like(local[A])) and torch.equal(grads[B], torch.zeros_like(local[B]))
    local = factors(4, 4, seed=0)
    grads = {B: torch.zeros_like(local[B], dtype=torch.bfloat16)}  # A has no gradient in this step
    RankDecay(strength=1.0, gamma=0.5).correct(grads, local, {}, {})
    assert not grads[B][:, :2].any() and bool(grads[B][:, 2:].all()) and grads[B].dtype == torch.bfloat16


def islands(rule: LoraRule | Mean, objective: Objective | None, train: str = "AB") -> lora_toy.Islands:
    tuning = LoRA(rank=4, train=train)  # pyright: ignore[reportArgumentType]
    models = [lora_toy.tuned(lora_toy.llama(), tuning) for _ in range(2)]
    return lora_toy.Islands(models, rule, every=6, clients=Clients(objective=objective))


def weights(done: lora_toy.Islands) -> Tensor:
    return toy.flat(list(done.sync.weights().values()))


@pytest.mark.parametrize("objective", [RankDecay(strength=0.0), RankDecay(strength=9.0, gamma=1.0)], ids=repr)
def test_without_strength_or_tail_it_is_the_rule_alone(objective: RankDecay) -> None:
    plain, other = islands(FedIT(rank=4), None), islands(FedIT(rank=4), objective)
    for run in (plain, other):
        run.round()
        run.round()
    assert torch.equal(weights(plain), weights(other))


def tails(done: lora_toy.Islands, island: int, rank: int) -> list[tuple[Adapter, float]]:
    held = done.sync.replicas[island].held
    found = [Adapter(a=held[a].detach()[:rank], b=held[b].detach()[:, :rank], scale=1.0) for a, b in pairs(held)]
    return [(x, tail(x, 0.5)) for x in found]


def test_last_rows_of_clients_of_any_rank_become_light_enough_to_prune() -> None:
    """HetLoRA's own setting, which objectives that pull towards the global weights are refused in."""
    rule = HetLoRA(rank=4, ranks=(4, 2))
    ends: list[list[list[tuple[Adapter, float]]]] = []
    for strength in (3.0, 0.0):
        run = islands(rule, RankDecay(strength=strength, gamma=0.5))
        run.round()
        for _ in range(5):
            run.step()
        ends.append([tails(run, k, r) for k, r in enumerate((4, 2))])
    for light, heavy, rank in zip(*ends, (4, 2), strict=True):
        assert sum(t for _, t in light) < 0.5 * sum(t for _, t in heavy)
        assert all(pruned(x, old, 0.5).rank == rank // 2 for (x, _), (old, _) in zip(light, heavy, strict=True))
    for objective in (FedProx(mu=0.1), Scaffold()):
        with pytest.raises(ConfigError, match=r"aggregator\.ranks is not allowed with clients\.objective"):
            islands(rule, objective)


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        (RankDecay(strength=-1.0), r"sync\.objective\.strength = -1\.0"),
        (RankDecay(strength=float("inf")), r"sync\.objective\.strength = inf"),
        (RankDecay(gamma=0.0), r"sync\.objective\.gamma = 0\.0"),
        (RankDecay(gamma=1.5), r"sync\.objective\.gamma = 1\.5"),
        (RankDecay(gamma=float("nan")), r"sync\.objective\.gamma = nan"),
    ],
    ids=repr,
)
def test_settings_out_of_range(objective: RankDecay, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        objective.check()
    assert "Fix: " in str(caught.value)


def test_a_model_without_both_factors_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"RankDecay is not allowed: .*lora_B.* is trained without its partner"):
        islands(FFA(rank=4), RankDecay(), train="B")
    model = toy.Net()
    with pytest.raises(ConfigError, match=r"RankDecay is not allowed: no LoRA factor is trained"):
        LocalSGD(model, toy.adamw(model), every=2, clients=Clients(objective=RankDecay()))
