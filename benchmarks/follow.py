"""Bytes that keep a follower's bf16 weights at the newest version, by learning rate, and whether the bits are equal.

    python -m benchmarks.follow [--short]        results/follow.json and .md

A small model is pretrained by two members of a run in a directory, then fine-tuned by two members at three rates. Every
version is published. The chain is folded again from its first snapshot, and the bits of each version are compared with
those that a follower has after the patch to it. "Late": the median over the last quarter of the versions.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import store_recipes as recipes
from benchmarks.common import write_result_and_table
from benchmarks.store_members import Run
from lowcomm.config import CheckpointConfig, RunConfig
from lowcomm.exchange.store import Store
from lowcomm.island import AdamW, InnerConfig
from lowcomm.model import ModelConfig
from lowcomm.outer import SGD, Nesterov
from lowcomm.store import fold, snapshot
from lowcomm.store.patch_code import Bits, apply_patch, bits_of, digest_of, pack_anchor, pack_forms
from lowcomm.store.payloads import Payloads
from lowcomm.store.published import HeadKey
from lowcomm.store.subscriber import Subscriber
from lowcomm.store.valid import keys_of
from lowcomm.storerun.history import commits
from lowcomm.storerun.joining import Opened, open_run
from lowcomm.storerun.plan import rules_of

COMMAND = "python -m benchmarks.follow"
EVERY, PRETRAIN_LR, RATES = 16, 3e-3, (1e-4, 1e-5, 1e-6)


def config(*, rounds: int, lr: float, model: ModelConfig, outer: Nesterov | SGD) -> RunConfig:
    """Two members, H = 16, int4 with error feedback; every version published, nothing deleted."""
    base = recipes.run(islands=2, rounds=rounds, every=EVERY, model=model, patience_s=30.0)
    exchange = Store(patience_s=30.0, publish_every=1, anchor_every=1000, keep=64)
    inner = InnerConfig(optimizer=AdamW(lr=lr), warmup_fraction=0.1)
    sync = replace(base.sync, exchange=exchange, outer=outer)
    return replace(base, inner=inner, sync=sync, checkpoint=CheckpointConfig(export=True))


def trained(name: str, made: RunConfig, allow: Path | None) -> Run:
    """The run, over."""
    run = Run(f"follow-{name}")
    run.create(made)
    for number in range(2):
        run.join(f"island-{number}", flags=() if allow is None else ("--allow", str(allow)))
    run.wait_for_end()
    return run


def versions(opened: Opened) -> Iterator[tuple[int, list[Bits]]]:
    """Each version's bits, from the fold of the chain."""
    rules = rules_of(opened.config, opened.run)
    read = snapshot.read_manifest(opened.objects, opened.run.snapshot.key)
    state = None if read is None else snapshot.load(opened.objects, opened.run.snapshot.key, read[0], rules)
    if state is None:
        raise SystemExit(f"{opened.objects.where}: the first snapshot can't be read")
    payloads = Payloads(opened.objects, rules)
    for _, raw, _ in commits(opened.objects, 0):
        if state.done:
            return
        held = payloads.fetch_all(keys_of(state, raw, rules))
        if held is None:
            raise SystemExit(f"{opened.objects.where}: commit {state.version} can't be folded")
        state, _ = fold.fold(state, raw, held, rules)
        yield state.version, [bits_of(f.weights) for f in state.fragments]


def measured(run: Run) -> list[dict[str, Any]]:
    """For each version: what its patch costs, and whether the bits are those of the chain."""
    opened, found, before = open_run(run.url), list[dict[str, Any]](), list[Bits]()
    follower = Subscriber(opened.objects, opened.run.run_id, opened.run.layouts)
    for number, bits in versions(opened):
        if not before:
            follower.take(HeadKey(number, None))
            before = bits
            continue
        down = opened.objects.counts.down_bytes
        taken = follower.take(HeadKey(number, number - 1))
        nbytes = opened.objects.counts.down_bytes - down
        start = time.perf_counter()
        in_bits, in_steps = pack_forms(before, bits)
        pack_s, start = time.perf_counter() - start, time.perf_counter()
        apply_patch([old.copy() for old in before], in_steps, digest_of(bits))
        elements = sum(map(len, bits))
        found.append({
            "version": number, "bytes": nbytes, "bits_bytes": len(in_bits.body), "steps_bytes": len(in_steps.body),
            "changed": in_bits.changed / elements, "elements": elements, "pack_s": pack_s,
            "apply_s": time.perf_counter() - start, "anchor_bytes": len(pack_anchor(bits).body),
            "identical": taken and all(np.array_equal(a, b) for a, b in zip(follower.fragments, bits, strict=True)),
        })  # fmt: skip
        before = bits
    return [one for one in found if one["changed"] or one["version"] > 2]  # the first commits only admit members


def row_of(name: str, lr: float, steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the first and of the last quarter; parts of a snapshot of 2 bytes per entry."""
    quarter = max(1, len(steps) // 4)
    snapshot_bytes = 2 * steps[0]["elements"]

    def median(part: Sequence[dict[str, Any]], key: str) -> float:
        return statistics.median(one[key] for one in part)

    early, late = steps[1 : 1 + quarter], steps[-quarter - 1 : -1]  # the last version has a shorter round, or none
    return {
        "run": name, "lr": lr, "every": EVERY, "versions": len(steps), "elements": steps[0]["elements"],
        "identical": all(one["identical"] for one in steps), "snapshot_bytes": snapshot_bytes,
        "early_changed": median(early, "changed"), "late_changed": median(late, "changed"),
        "early_share": median(early, "bytes") / snapshot_bytes, "late_share": median(late, "bytes") / snapshot_bytes,
        "late_bits_share": median(late, "bits_bytes") / snapshot_bytes,
        "late_steps_share": median(late, "steps_bytes") / snapshot_bytes,
        "anchor_share": median(late, "anchor_bytes") / snapshot_bytes, "pack_s": median(late, "pack_s"),
        "apply_s": median(late, "apply_s"),
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    heads = "| run | lr | changed per version, early | late | a bf16 snapshot is so many patches, early | late "
    lines = [f"{heads}| late, values as they are | equal bits |", "|---|---:|---:|---:|---:|---:|---:|---|"]
    for r in result["rows"]:
        lines.append(
            f"| {r['run']} | {r['lr']:g} | {r['early_changed']:.1%} | {r['late_changed']:.1%} "
            f"| {1 / r['early_share']:.1f} | {1 / r['late_share']:.1f} | {1 / r['late_bits_share']:.1f} "
            f"| {'yes' if r['identical'] else 'no'}, {r['versions']} versions |"
        )
    first = result["rows"][0]
    lines.append(
        f"\n{first['elements']:,} parameters, 2 members, a version every {first['every']} inner steps of AdamW, whose "
        f"rate falls to a tenth; early and late: medians of the first and the last quarter. An anchor is "
        f"{first['anchor_share']:.0%} of a snapshot. `{result['command']}`, {result['hardware']['cpu']}, "
        f"{result['created'][:10]}."
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Pretrain, fine-tune, measure."""
    parser = argparse.ArgumentParser(description="What it costs to follow a run.")
    parser.add_argument("--short", action="store_true", help="fewer rounds of a smaller model: shows that it works")
    short = parser.parse_args().short
    model, rounds = (recipes.NANO, 12) if short else (recipes.TINY, 64)
    first = trained(
        "pretrain", config(rounds=rounds, lr=PRETRAIN_LR, model=model, outer=Nesterov(lr=0.7, momentum=0.6)), None
    )
    base = first.islands[0].directory / "export"
    runs = [("pretraining", PRETRAIN_LR, first)]
    for lr in RATES:
        made = config(rounds=rounds // 2, lr=lr, model=ModelConfig(directory=base), outer=SGD(lr=1.0))
        runs.append(("fine-tuning", lr, trained(f"lr-{lr:g}", made, base)))
    # after all members were forked: what is folded here starts threads, and a process with threads is not to fork
    rows = [row_of(name, lr, measured(run)) for name, lr, run in runs]
    print(write_result_and_table("follow", COMMAND + (" --short" if short else ""), rows, table))


if __name__ == "__main__":
    main()
