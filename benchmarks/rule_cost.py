"""What a rule's choice costs beside a plain sync of eight islands: seconds of its table, its coefficients and its sum.

    python -m benchmarks.rule_cost [--preset 30m] [--islands 8] [--repeats 5]

The plain sync (mean, fp32, gloo over loopback, one process per island) is timed in processes of their own; then each
rule combines as many Deltas of that size in this process, by one thread. `choice_s`: the table of inner products
(timed once for all rules; K + 1 rows for those that remember) and the rule's coefficients, for rules in Gram space;
`combine_s`: all that the rule computes, timed once. Payloads that a rule must gather are not in it: they are (n - 1)
per island each way where a sum sends about two. To be run on a calm machine: a minute and a half.
Writes benchmarks/results/rule_cost.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from benchmarks.common import write_result
from lowcomm.aggregate import (
    NNM,
    RFFL,
    SMEA,
    Aggregator,
    CentredClipping,
    Context,
    FedCPA,
    Flag,
    GeometricMedian,
    GramRule,
    Krum,
    Mean,
    Median,
    NormBound,
    SybilWall,
    TrimmedMean,
    Trust,
)
from lowcomm.aggregate.table import table_of
from lowcomm.model import ModelConfig, build_model
from lowcomm.outer import Nesterov
from lowcomm.sync import LocalSGD
from lowcomm.types import Contribution, Delta, Round

RULES: tuple[Aggregator, ...] = (
    Mean(by="uniform"), NormBound(), GeometricMedian(), CentredClipping(), Krum(faulty=2, best=4), RFFL(),
    SMEA(faulty=2), Flag(), Trust(), SybilWall(), Median(), TrimmedMean(faulty=2),
    NNM(faulty=2) | TrimmedMean(faulty=2), NNM(faulty=2) | CentredClipping(), FedCPA(),
)  # fmt: skip


def worker(preset: str, repeats: int) -> None:
    """One island of the plain sync; rank 0 prints the seconds of the slowest island in every turn."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    settings = ModelConfig(preset=preset)  # pyright: ignore[reportArgumentType]
    model = build_model(settings, vocab_size=260, max_tokens=128, seed=0, eos_id=256)
    sync = LocalSGD(model, torch.optim.SGD(model.parameters(), lr=1e-3), every=1_000_000, outer=Nesterov())
    turns: list[float] = []
    for _ in range(repeats + 1):
        for p in model.parameters():
            p.data.add_(torch.randn_like(p), alpha=1e-4)
        sync.replicas[0].tokens += 1
        dist.barrier()
        start = time.perf_counter()
        sync.sync((0,))
        slowest = torch.tensor([time.perf_counter() - start], dtype=torch.float64)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        turns.append(float(slowest))
    if dist.get_rank() == 0:
        print(json.dumps(turns[1:]), flush=True)
    dist.destroy_process_group()


def median_s(work: Callable[[], object], repeats: int) -> float:
    """Median seconds, after one turn that allocates."""
    seconds: list[float] = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def table_s(given: list[Contribution], start: Delta, repeats: int) -> dict[bool, float]:
    """Median seconds of the table of inner products, by whether the rule remembers its last Delta."""
    rows = [c.delta for c in given]
    return {
        False: median_s(lambda: table_of(rows, start), repeats),
        True: median_s(lambda: table_of([*rows, rows[0]], start), repeats),
    }


def row_of(
    rule: Aggregator, given: list[Contribution], start: Delta, plain_s: float, tables: dict[bool, float]
) -> dict[str, object]:
    """What one rule costs."""
    context = Context(start=start, round=Round(index=0, step=0, fragments=(0,), seed=0))
    began = time.perf_counter()
    rule.combine(given, context)
    combine_s = time.perf_counter() - began
    row: dict[str, object] = {"rule": repr(rule), "combine_s": combine_s, "plain_sync_s": plain_s}
    if isinstance(rule, GramRule):
        weights = [c.weight for c in given]
        count = len(given) + rule.remembers
        gram = torch.eye(count, dtype=torch.float64) + 0.01
        judged_s = median_s(lambda: rule.coefficients(gram, weights), 5)
        choice_s = tables[rule.remembers] + judged_s
        row |= {"coefficients_s": judged_s, "choice_s": choice_s, "choice_of_sync": choice_s / plain_s}
    return row


def main() -> None:
    """Time the plain sync, then the rules."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="30m")
    parser.add_argument("--islands", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--worker", action="store_true", help="used by the launcher")
    options = parser.parse_args()
    if options.worker:
        worker(options.preset, options.repeats)
        return
    torch.set_num_threads(1)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(options.islands)]
    arguments = ["--worker", "--preset", options.preset, "--repeats", str(options.repeats)]
    done = subprocess.run(
        [*command, "-m", "benchmarks.rule_cost", *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    plain_s = statistics.median(json.loads(done.stdout.strip().splitlines()[-1]))
    settings = ModelConfig(preset=options.preset)
    model = build_model(settings, vocab_size=260, max_tokens=128, seed=0, eos_id=256)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    given = [
        Contribution(
            island=k,
            delta={n: torch.randn_like(t) * 1e-3 for n, t in start.items()},
            weight=1 / options.islands,
            round=0,
        )
        for k in range(options.islands)
    ]
    size = sum(t.numel() for t in start.values())
    tables = table_s(given, start, options.repeats)
    print(f"plain sync {plain_s:.2f} s, table {tables[False]:.3f} s", flush=True)
    rows: list[dict[str, object]] = []
    for rule in RULES:
        row = row_of(rule, given, start, plain_s, tables)
        rows.append(row | {"islands": options.islands, "parameters": size})
        print(rows[-1], flush=True)
    told = f"--preset {options.preset} --islands {options.islands} --repeats {options.repeats}"
    print(write_result("rule_cost", f"python -m benchmarks.rule_cost {told}", rows))


if __name__ == "__main__":
    main()
