"""Rules that pick or weigh islands see the dW of LoRA adapters, whatever basis its factors have."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lowcomm.aggregate import NNM, Aggregator, CentredClipping, Context, GeometricMedian, Krum, NormBound, TrimmedMean
from lowcomm.aggregate.table import gram_table, table_of
from lowcomm.config import RunConfig, SyncConfig
from lowcomm.config_check import check
from lowcomm.model import LoRA, ModelConfig
from lowcomm.outer import SGD
from lowcomm.schedule import Streaming
from lowcomm.sync import LocalSGD
from lowcomm.transport import Simulated
from lowcomm.types import ConfigError, Contribution, Delta, Round
from tests.methods import name
from tests.support import lora_toy

RANK, LAYERS = 4, {"m.q": (20, 15), "m.v": (9, 33)}
ROUND = Round(index=2, step=8, fragments=(0,), seed=5)
RULES = (
    Krum(faulty=1, best=2),
    GeometricMedian(),
    CentredClipping(),
    NormBound(),
    NNM(faulty=1) | Krum(faulty=1, best=2),
    NNM(faulty=1) | CentredClipping(),
)


def names(layer: str) -> tuple[str, str]:
    return f"{layer}.lora_A.default.weight", f"{layer}.lora_B.default.weight"


def factors(generator: torch.Generator) -> Delta:
    found: Delta = {}
    for layer, (out, into) in LAYERS.items():
        a, b = names(layer)
        found[a], found[b] = torch.randn(RANK, into, generator=generator), torch.randn(out, RANK, generator=generator)
    return found


def trained(count: int, seed: int) -> tuple[Delta, list[Delta]]:
    """The anchor's factors and those of each island after training."""
    generator = torch.Generator().manual_seed(seed)
    start = factors(generator)
    common = factors(generator)
    return start, [
        {n: start[n] + 0.3 * common[n] + (0.1 + 0.02 * i) * t for n, t in factors(generator).items()}
        for i in range(count)
    ]


def turned(own: Delta, seed: int) -> Delta:
    """The same dW from factors in another basis, not only rotated: B Q, Q^-1 A."""
    generator = torch.Generator().manual_seed(seed)
    found: Delta = {}
    for layer in LAYERS:
        a, b = names(layer)
        q = torch.linalg.qr(torch.randn(RANK, RANK, generator=generator).double())[0]
        q = q @ torch.diag(torch.rand(RANK, generator=generator).double() + 0.5)
        found[a], found[b] = (torch.linalg.inv(q) @ own[a].double()).float(), (own[b].double() @ q).float()
    return found


def deltas_of(start: Delta, islands: list[Delta]) -> list[Delta]:
    return [{n: start[n] - own[n] for n in start} for own in islands]


def dense(start: Delta, own: Delta) -> Tensor:
    parts = [start[b].double() @ start[a].double() - own[b].double() @ own[a].double() for a, b in map(names, LAYERS)]
    return torch.cat([p.reshape(-1) for p in parts])


def test_the_table_is_that_of_the_matrices() -> None:
    start, islands = trained(5, 0)
    rows = torch.stack([dense(start, own) for own in islands])
    torch.testing.assert_close(table_of(deltas_of(start, islands), start), rows @ rows.T, rtol=1e-5, atol=1e-4)


def combined(rule: Aggregator, start: Delta, islands: list[Delta], state: Delta) -> str:
    count = len(islands)
    found = [
        Contribution(island=i, delta=d, weight=1 / count, round=2) for i, d in enumerate(deltas_of(start, islands))
    ]
    return rule.combine(found, Context(start=start, round=ROUND, state=state)).notes[0]


@pytest.mark.parametrize("rule", RULES, ids=name)
def test_no_basis_of_the_factors_changes_a_choice(rule: Aggregator) -> None:
    """Each island turns its factors by itself; the note has the choice, or the weights to four digits."""
    for seed in range(4):
        start, islands = trained(6, seed)
        islands[seed] = {n: start[n] - 4 * (t - start[n]) for n, t in islands[seed].items()}
        state = {n: 0.2 * t for n, t in factors(torch.Generator().manual_seed(seed)).items()}
        told = combined(rule, start, islands, state)
        assert combined(rule, start, [turned(own, 7 * i + seed) for i, own in enumerate(islands)], state) == told


def test_distances_of_factors_would_choose_by_their_basis() -> None:
    """Or the test above would show nothing."""
    start, islands = trained(6, 1)
    rule, weights = Krum(faulty=1, best=2), [1 / 6] * 6
    plain = rule.coefficients(gram_table(deltas_of(start, islands)), weights)
    changed = [
        rule.coefficients(gram_table(deltas_of(start, [turned(o, 7 * i + s) for i, o in enumerate(islands)])), weights)
        for s in range(4)
    ]
    assert any(c != plain for c in changed)


def test_islands_with_adapters_leave_out_the_one_whose_dw_is_far() -> None:
    models = [lora_toy.tuned(lora_toy.llama(), LoRA(rank=2)) for _ in range(5)]
    inners = [torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.1) for m in models]
    sync = LocalSGD(
        models, inners, every=2, outer=SGD(lr=1.0), aggregator=Krum(faulty=1, best=3), transport=Simulated(5)
    )
    notes: list[str] = []
    sync.listeners.append(lambda report: notes.extend(report.notes))
    generator = torch.Generator().manual_seed(3)
    for _ in range(2):
        for i, (model, inner) in enumerate(zip(models, inners, strict=True)):
            for p in model.parameters():
                if p.requires_grad:
                    p.grad = torch.randn(p.shape, generator=generator) * (30.0 if i == 1 else 0.1)
            inner.step()
    assert len(notes) == 1
    assert "1" in notes[0].split("left out ")[1]


@pytest.mark.parametrize("rule", [TrimmedMean(), NNM() | TrimmedMean()], ids=name)
def test_rules_of_coordinates_are_refused(rule: Aggregator) -> None:
    config = RunConfig(model=ModelConfig(tuning=LoRA(rank=2)), sync=SyncConfig(aggregator=rule))
    with pytest.raises(
        ConfigError, match=r"model\.tuning = LoRA .* Fix: use a rule that picks or weighs islands \(Krum"
    ):
        check(config, 5)


def test_what_a_table_of_factors_does_not_fit_is_refused() -> None:
    models = [lora_toy.tuned(lora_toy.llama(tied=False), LoRA(rank=2)) for _ in range(5)]

    def build(schedule: Streaming | None = None) -> None:
        inners = [torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.1) for m in models]
        LocalSGD(models, inners, every=4, aggregator=Krum(), transport=Simulated(5), schedule=schedule)

    with pytest.raises(ConfigError, match=r"sync\.schedule\.fragments = 2|schedule\.fragments = 2"):
        build(Streaming(fragments=2, by="size"))
    for model in models:
        next(p for n, p in model.named_parameters() if "lm_head" in n).requires_grad_(True)
    with pytest.raises(ConfigError, match=r"parameters = .*lm_head.*Krum measures adapters by their dW"):
        build()
