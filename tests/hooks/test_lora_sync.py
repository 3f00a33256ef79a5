"""LoRA rules inside a LocalSGD, on real peft models: what islands hold after a round is what the rule says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lowcomm.aggregate import Aggregator, Mean
from lowcomm.aggregate.lora import (
    FFA,
    Cellm,
    FedEx,
    FedIT,
    FedRand,
    FedSA,
    FedSB,
    FlexLoRA,
    FLoRA,
    HetLoRA,
    HLoRA,
    LoraFair,
    LoraRule,
    RoLoRA,
    SenderMean,
)
from lowcomm.codec import EitherFactor, ErrorFeedback, Int8, InTurn, LargestLayers, Shared, TopK
from lowcomm.outer import SGD, Nesterov
from lowcomm.schedule import Streaming
from lowcomm.state.checkpoint import global_part, island_part
from lowcomm.sync import LocalSGD
from lowcomm.types import ConfigError, CoverageError
from tests.support import lora_toy as toy

LINEAR, CONV = ("q_proj", "v_proj", "down_proj"), ("c_attn", "c_fc")
KINDS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "Linear": (toy.llama, LINEAR),
    "Conv1D": (toy.gpt2, CONV),
    "embedding": (lambda: toy.llama(tied=False), ("embed_tokens", "q_proj")),
}
EXACT = 1e-5


def islands(
    rule: LoraRule, kind: str = "Linear", n: int = 3, train: str = "AB", codec: Any = None, lr: float = 0.05
) -> toy.Islands:
    make, targets = KINDS[kind]
    models = [toy.tuned(make(), toy.lora(rule, targets, train)) for _ in range(n)]
    return toy.Islands(models, rule, codec=codec, lr=lr)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("rule", "train"),
    [
        (FedEx(rank=2, alpha=3.0), "AB"),
        (FedEx(rank=4, alpha=8.0, rslora=True, ranks=(4, 1, 2)), "AB"),
        (FLoRA(rank=3, ranks=(3, 1, 2)), "AB"),
        (FFA(rank=3), "B"),
        (RoLoRA(rank=3), "AB"),
        (FedSB(rank=4), "core"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, LoraRule) else str(v),
)
def test_exact_rules_are_exact_on_every_layer_type(kind: str, rule: LoraRule, train: str) -> None:
    """After each of three rounds the effective weights are base + sum p_k (what island k made of it)."""
    if kind == "embedding" and train == "core":
        pytest.skip("an embedding has no linear B")
    run = islands(rule, kind, train=train)
    for index in range(3):
        base = toy.bases(run.models[0])
        run.round()
        wanted = run.target(base)
        got = toy.effective(run.models[0])
        assert toy.off(wanted, got, base) <= EXACT, index
        for other in run.models[1:] if rule.ranks is None else ():
            assert all(torch.equal(a, b) for a, b in zip(toy.effective(other).values(), got.values(), strict=True))
        told = run.reports[-1].aggregation_error
        assert told is None or told <= EXACT


@pytest.mark.parametrize(
    ("make", "targets", "rank"),
    [
        (toy.llama, ("k_proj", "v_proj"), 8),
        (toy.gpt2, ("c_attn",), 16),
        (lambda: toy.llama(tied=False), ("embed_tokens",), 16),
        (toy.llama, ("embed_tokens",), 16),  # tied to the head
    ],
    ids=["Linear", "Conv1D", "embedding", "tied"],
)
@pytest.mark.parametrize("cls", [FlexLoRA, HLoRA])
def test_svd_rules_are_exact_at_full_rank(
    cls: type[LoraRule], make: Callable[[], Any], targets: Any, rank: int
) -> None:
    rule = cls(rank=rank, alpha=rank)
    run = toy.Islands([toy.by_peft(make(), toy.lora(rule, targets)) for _ in range(3)], rule)
    for _ in range(3):
        base = toy.bases(run.models[0])
        run.round()
        assert toy.off(run.target(base), toy.effective(run.models[0]), base) <= EXACT
        assert run.reports[-1].aggregation_error <= EXACT


def test_naive_reports_the_error_that_it_makes() -> None:
    run = islands(FedIT(rank=2))
    for _ in range(3):
        base = toy.bases(run.models[0])
        run.round()
        wanted, got = run.target(base), toy.effective(run.models[0])
        told = run.reports[-1].aggregation_error
        missing = sum(float((wanted[n] - got[n]).norm() ** 2) for n in wanted) ** 0.5
        size = sum(float((wanted[n] - base[n]).norm() ** 2) for n in wanted) ** 0.5
        assert told == pytest.approx(missing / size, rel=1e-3)
        assert told > 1e-3
    assert "FedIT: aggregation error" in run.reports[-1].notes[0]


def test_ranks_and_scales_of_each_island() -> None:
    rule = FlexLoRA(rank=4, alpha=8.0, ranks=(4, 1, 2))
    run = islands(rule)
    for _ in range(2):
        for model, rank in zip(run.models, (4, 1, 2), strict=True):
            for layer in toy.layers(model).values():
                a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
                assert bool((a[rank:] == 0).all())
                assert bool((b[:, rank:] == 0).all())
                assert bool((a[:rank] != 0).any())
                assert layer.scaling["default"] == 8.0 / rank
        run.step()
        run.step()  # the rows behind its rank get no gradient
    run.round()
    one = toy.effective(run.models[1])
    base = toy.bases(run.models[1])
    for n, weight in one.items():
        assert int(torch.linalg.matrix_rank(weight - base[n], rtol=1e-4)) <= 1


def test_private_factors_stay_at_home() -> None:
    run = islands(FedSA(rank=2), codec=Shared())
    run.round()
    names = run.sync.state.fragments[0].names
    values = [{n: r.params[n].detach().clone() for n in names} for r in run.sync.replicas]
    for n in names:
        same = all(torch.equal(v[n], values[0][n]) for v in values)
        assert same == (".lora_A." in n), n
    sent = run.reports[-1].exchanged_bytes[0]
    halves = sum(4 * p.numel() for n, p in run.sync.replicas[0].params.items() if ".lora_A." in n)
    assert halves * 2 <= sent <= halves * 2 + 800  # to two others, with headers, bitmap and roll call


def test_fedrand_takes_what_it_sends_and_keeps_the_rest() -> None:
    run = islands(FedRand(rank=2), codec=EitherFactor())
    run.round()
    held = [
        {n for n in run.sync.state.fragments[0].names if not torch.equal(r.params[n], run.sync.weights()[n])}
        for r in run.sync.replicas
    ]
    assert all(held)
    assert held[0] != held[1] or held[1] != held[2]
    coming = run.sync.state.round_of(0)
    for i, names in enumerate(held):
        import dataclasses

        assert names <= run.sync.state.spec.codec.private(run.sync.weights(), dataclasses.replace(coming, island=i))
        assert not any(n.replace("lora_A", "lora_B") in names for n in names if "lora_A" in n)
    run.round()


def test_rolora_trains_one_factor_at_a_time() -> None:
    run = islands(RoLoRA(rank=2), codec=InTurn())
    for index in range(4):
        before = {n: w.clone() for n, w in run.sync.weights().items()}
        run.round()
        moved = {n for n, w in run.sync.weights().items() if not torch.equal(w, before[n])}
        factor = "B" if index % 2 == 0 else "A"
        assert moved
        assert all(f".lora_{factor}." in n for n in moved)


def test_flora_starts_again_with_fresh_factors_and_moments() -> None:
    run = islands(FLoRA(rank=2))
    run.round()
    for layer in toy.layers(run.models[0]).values():
        assert bool((layer.lora_B["default"].weight == 0).all())
    assert not run.sync.replicas[0].inner.state
    run.round()


def test_selective_layers_average_over_senders() -> None:
    run = islands(SenderMean(rank=2), codec=LargestLayers(budget_bytes=400))
    run.round()
    full = 4 * run.sync.state.fragments[0].numel
    assert run.reports[-1].exchanged_bytes[0] / 2 < 0.7 * full + 400
    assert all(torch.equal(r.params[n], w) for r in run.sync.replicas for n, w in run.sync.weights().items())


@pytest.mark.parametrize(
    ("rule", "codec"),
    [
        (FedIT(rank=2), ErrorFeedback(codec=TopK(chunk=64, k=16, bits=8))),
        (HetLoRA(rank=3, ranks=(3, 1, 2)), None),
        (LoraFair(rank=2), Int8(exchange="gather")),
        (Cellm(rank=2), None),
        (FedEx(rank=2), Int8(exchange="gather")),
    ],
    ids=lambda v: type(v).__name__,
)
def test_rules_go_with_codecs(rule: LoraRule, codec: Any) -> None:
    run = islands(rule, codec=codec, lr=0.02)
    first = run.loss()
    for _ in range(4):
        run.round()
    assert run.loss() < first


def test_frozen_base_is_neither_sent_nor_saved_but_a_changed_one_is_saved() -> None:
    plain, moved = islands(FedIT(rank=2)), islands(FedEx(rank=2))
    for run, has_base in ((plain, False), (moved, True)):
        run.round()
        tensors, _ = island_part(run.sync.state, 0)
        merged, _ = global_part(run.sync.state)
        names = {n for n in tensors if ".lora_" not in n and n.startswith(("model.", "buffer."))}
        assert any("base_layer.weight" in n for n in names) == has_base
        assert not any("mlp.gate_proj" in n for n in names)
        assert sum(t.numel() for n, t in merged.items()) == run.sync.state.fragments[0].numel


def test_restored_state_goes_on_with_the_same_bits() -> None:
    """Base weights that a rule changed come back too; a base model loaded anew has the old ones."""
    from lowcomm.state.checkpoint import load_global, load_island

    for rule, codec in ((FedEx(rank=2), None), (FedRand(rank=2), EitherFactor()), (RoLoRA(rank=2), InTurn())):
        whole, halves = islands(rule, codec=codec), islands(rule, codec=codec)
        for run in (whole, halves):
            run.round()
            run.step()
        again = islands(rule, codec=codec)
        load_global(again.sync.state, global_part(halves.sync.state))
        for i in range(3):
            load_island(again.sync.state, i, island_part(halves.sync.state, i))
        again.steps = halves.steps
        for run in (whole, again):
            run.round()
            run.round()
        for a, b in zip(whole.models, again.models, strict=True):
            for (n, x), y in zip(toy.effective(a).items(), toy.effective(b).values(), strict=True):
                assert torch.equal(x, y), (type(rule), n)


def test_a_diverged_island_is_left_out_and_gets_everything_anew() -> None:
    run = islands(FedSA(rank=2), codec=Shared())
    run.round()
    run.step()
    run.step()
    with torch.no_grad():
        next(iter(run.sync.replicas[1].params.values())).fill_(float("nan"))
    run.round()
    assert list(run.reports[-1].dropped) == [1]
    assert all(bool(p.isfinite().all()) for p in run.sync.replicas[1].params.values())


@pytest.mark.parametrize(
    ("rule", "train", "words"),
    [
        (FFA(rank=2), "AB", "FFA trains B of A and B"),
        (FedIT(rank=2), "B", "FedIT trains AB of A and B"),
        (FedSB(rank=2), "AB", "FedSB trains neither"),
    ],
)
def test_factors_that_do_not_fit_the_rule(rule: LoraRule, train: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        islands(rule, train=train)


def test_alpha_rank_and_ranks_must_be_the_models() -> None:
    def build(rule: LoraRule, model_rule: LoraRule) -> LocalSGD:
        models = [toy.tuned(toy.llama(), toy.lora(model_rule, LINEAR)) for _ in range(2)]
        return toy.Islands(models, rule).sync

    with pytest.raises(ConfigError, match=r"alpha = 16.0 .*gives the scale 8, but .* has 4"):
        build(FedIT(rank=2, alpha=16.0), FedIT(rank=2, alpha=8.0))
    with pytest.raises(ConfigError, match=r"rank = 4 is not allowed: .* has rank 2"):
        build(FedIT(rank=4), FedIT(rank=2))
    with pytest.raises(ConfigError, match="ranks has 3 ranks, there are 2 islands"):
        build(FlexLoRA(rank=2, ranks=(2, 1, 1)), FlexLoRA(rank=2))
    with pytest.raises(ConfigError, match="found no LoRA layer"):
        toy.Islands([toy.llama(), toy.llama()], FedIT(rank=2))


def test_a_tied_base_weight_is_refused_by_rules_that_change_it() -> None:
    with pytest.raises(ConfigError, match="shares its weight with lm_head"):
        toy.tuned(toy.llama(tied=True), toy.lora(FedEx(rank=2), ("embed_tokens",)))
    models = [toy.by_peft(toy.llama(tied=True), toy.lora(FedEx(rank=2), ("embed_tokens",))) for _ in range(2)]
    with pytest.raises(ConfigError, match="another module shares"):
        toy.Islands(models, FedEx(rank=2))


@pytest.mark.parametrize(
    ("rule", "changes", "words"),
    [
        (FLoRA(rank=2), {"outer": Nesterov(lr=0.7, momentum=0.9)}, r"outer = .*use SGD"),
        (FedEx(rank=2), {"outer": Nesterov(lr=0.5, momentum=0.0)}, r"outer"),
        (
            FlexLoRA(rank=2),
            {"codec": ErrorFeedback(codec=Int8(exchange="gather")), "outer": SGD(lr=1.0)},
            "changes the factors' basis",
        ),
        (FedIT(rank=2), {"schedule": Streaming(fragments=2)}, "both factors of a layer at once"),
        (FedIT(rank=2), {"codec": Shared()}, "use SenderMean"),
        (FedSA(rank=2), {"codec": ErrorFeedback(codec=Shared())}, "keeps tensors back on purpose"),
        (FedSA(rank=2), {"codec": InTurn()}, "use RoLoRA"),
        (Mean(), {"codec": EitherFactor()}, "use SenderMean"),
    ],
)
def test_impossible_compositions_name_both_parts(rule: Aggregator, changes: dict[str, Any], words: str) -> None:
    model = toy.tuned(toy.llama(), toy.lora(FedIT(rank=2), LINEAR))
    inner = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    arguments = {"outer": None, "codec": None, "schedule": None, **changes}
    with pytest.raises(ConfigError, match=words):
        LocalSGD(model, inner, every=2, aggregator=rule, **arguments)


def test_freezing_a_factor_later_is_seen() -> None:
    """FFA that freezes A in the middle of a run, or before adapters exist, would train something else unseen."""
    from lowcomm.model.lora import lora_layers

    with pytest.raises(ConfigError, match="no LoRA layers yet"):
        lora_layers(toy.llama())
    run = islands(FedIT(rank=2))
    for layer in toy.layers(run.models[0]).values():
        layer.lora_A["default"].weight.requires_grad_(False)
    with pytest.raises(CoverageError, match="was frozen"):
        run.round()
