"""Markdown tables of the kernels' result files; nothing in them is computed from anything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GOALS = {
    "quantise int8": 0.70,
    "quantise int4": 0.60,
    "delta + error feedback + int8": 0.60,
    "dequantise + accumulate int8": 0.60,
    "topk 64/4096": 0.15,
    "sparse decode + mean, 4 peers": 0.40,
    "sign pack": 0.60,
}
"""Least share of copy on a CPU that the kernels are held to."""
MAIN_PATHS = ("numba", "triton")


def write_kernels_table(path: Path) -> Path:
    """RESULTS/kernels_*.md beside the result file."""
    result = json.loads(path.read_text(encoding="utf-8"))
    target = path.with_suffix(".md")
    lines = aot_table(result) if result["benchmark"] == "kernels_aot" else speed_table(result)
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return target


def speed_table(result: dict[str, Any]) -> list[str]:
    """One line for each op: share of copy by path, then the GB/s and the spread of the main path."""
    rows = result["rows"]
    paths = list(dict.fromkeys(r["path"] for r in rows))
    cells = {(r["op"], r["path"]): r for r in rows}
    main = next(p for p in MAIN_PATHS if p in paths)
    lines = [
        f"| op | goal | {' | '.join(paths)} | {main}, min to max | {main}, GB/s |",
        "|" + "---|" * (len(paths) + 4),
    ]
    for op in dict.fromkeys(r["op"] for r in rows):
        own = cells.get((op, main))
        goal = f"{GOALS[op]:.0%}" if op in GOALS and main == "numba" else ""
        shares = " | ".join(f"{cells[op, p]['share_of_copy']:.1%}" if (op, p) in cells else "" for p in paths)
        spread = f"{own['share_min']:.1%} to {own['share_max']:.1%} | {own['gb_per_s']:.1f}" if own else " | "
        lines.append(f"| {op} | {goal} | {shares} | {spread} |")
    sizes = "; ".join(
        f"{path}: {'/'.join(f'{n:,}' for n in sorted({r['elements'] for r in rows if r['path'] == path}))} elements, "
        f"{max(r['repeats'] for r in rows if r['path'] == path)} repeats"
        for path in paths
    )
    lines.append(
        "\nShare of copy: the least bytes that the op's specification moves, over its time, as a share of the speed of "
        "a copy of fp32 of the same length timed just before it (median of the repeats). It can pass 100 %: an op that "
        "reads more than it writes fetches fewer lines only to overwrite them. bitsandbytes and hivemind write other "
        "formats; the bytes counted are those of our op, so that shares compare."
    )
    lines.append(f"\n{sizes}; threads: {rows[0]['threads']}. {_source(result)}")
    return lines


def aot_table(result: dict[str, Any]) -> list[str]:
    """One line for each kernel: registers by target, spills, the cap, shared memory and bytes per element."""
    rows = result["rows"]
    targets = list(dict.fromkeys(r["target"] for r in rows))
    lines = [
        f"| kernel | registers: {' | '.join(targets)} | cap | spill bytes, most | shared bytes, most | "
        "global bytes per element | 16-byte accesses, sm_90 |",
        "|" + "---|" * (len(targets) + 6),
    ]
    for kernel in dict.fromkeys(r["kernel"] for r in rows):
        mine = {r["target"]: r for r in rows if r["kernel"] == kernel}
        registers = " | ".join(str(mine[t]["registers"]) if t in mine else "" for t in targets)
        spill, shared = (max(r[k] for r in mine.values()) for k in ("spill_bytes", "shared_bytes"))
        moved = {r["global_bytes_per_element"] for r in mine.values()} - {None}
        first = mine[targets[0]]
        lines.append(
            f"| {kernel} | {registers} | {first['registers_cap']} | {spill} | {shared} | "
            f"{'/'.join(f'{m:g}' for m in sorted(moved))} | {mine['sm_90']['wide_accesses']} |"
        )
    lines.append(
        "\nRegisters of a thread (gfx942: vector registers); global bytes per element with one peer, read off the PTX "
        "for 16-byte accesses, from the format for narrower ones. Kernels that see only kept entries move few bytes, "
        "none of them 16 at a time."
    )
    lines.append(f"\nTriton {rows[0]['triton']}. {_source(result)}")
    return lines


def _source(result: dict[str, Any]) -> str:
    commit = (result["commit"] or "unknown")[:10]
    return f"`{result['command']}`, {result['hardware']['cpu']}, commit {commit}, {result['created'][:10]}."
