"""Islands whose text differs: rules that let none fall behind, and scores of what each has contributed."""

from __future__ import annotations

from lowcomm.aggregate import AFL, QFFL, Aggregator, FedFB, Krum, Shapley, Trust
from lowcomm.config import CheckpointConfig, EvalConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig, Packages
from lowcomm.data.proxy import Proxy
from lowcomm.data.python_corpus import PythonCorpus
from lowcomm.model import ModelConfig
from lowcomm.outer import Nesterov

PACKAGES = ("numpy", "torch", "transformers", "rich", "networkx")


def smoke() -> RunConfig:
    """q-FFL (arXiv 1905.10497): four islands with a package each weigh by their loss; seconds on a CPU."""
    return _run("qffl", QFFL(power=2.0))


def agnostic() -> RunConfig:
    """AFL (arXiv 1902.00146): an island weighs more from round to round while its loss is above the others'."""
    return _run("afl", AFL(lr=0.5))


def groups() -> RunConfig:
    """FedFB (arXiv 2110.15545): two groups of islands, that with the larger loss weighs more."""
    return _run("fedfb", FedFB(groups=(0, 0, 1, 1)))


def contribution() -> RunConfig:
    """Five islands, Shapley values of those that Krum takes on a text that nobody trains on: scores.jsonl."""
    rule = Shapley(rule=Krum(faulty=1, best=3), permutations=4)
    return _run("contribution", rule, islands=5, proxy=Proxy(source=PythonCorpus(), sequences=16))


def trust() -> RunConfig:
    """Five islands weigh by trust, which is lost at once and won back slowly: scores.jsonl."""
    return _run("trust", Trust(), islands=5)


def _run(name: str, rule: Aggregator, islands: int = 4, proxy: Proxy | None = None) -> RunConfig:
    source = Packages(names=PACKAGES[:islands], max_bytes_each=200_000)
    return RunConfig(
        name=f"fairness-{name}",
        islands=islands,
        steps=64,
        data=DataConfig(source=source, sharding="by_folder", seq_len=64, batch_size=4, validation_sequences=32),
        model=ModelConfig(preset="nano"),
        sync=SyncConfig(every=8, outer=Nesterov(lr=0.7, momentum=0.6), aggregator=rule, proxy=proxy),
        eval=EvalConfig(clients=True),
        checkpoint=CheckpointConfig(every_rounds=4),
    )
