"""`lowcomm doctor`: what is installed, what a run would use, what would hurt it, how fast the links are.

Alone it looks at one machine. Under torchrun it also measures every pair of ranks, in turn.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lowcomm.doctor import host as host
from lowcomm.doctor import links as doctor_links
from lowcomm.doctor import network as net
from lowcomm.types import ConfigError

_MIN_PAYLOAD_BYTES, _MAX_PAYLOAD_BYTES = 1024, 1_000_000_000
_MIN_FREE_BYTES = 5_000_000_000
_MIN_SHM_BYTES = 1_000_000_000
_MIN_OPEN_FILES = 4096
_SLOW_FSYNC_S = 0.1
_WIDEST_MATRIX = 12

Facts = dict[str, Any]


def run_doctor(json_path: Path | None = None, run_dir: Path = Path("runs"), payload_bytes: int = 4_000_000) -> int:
    """Print the report (rank 0); write it to `json_path` as well. Under torchrun every rank calls it.

    payload_bytes is what one bandwidth sample sends. Returns 0, or 1 when something would stop a run.
    Raises ConfigError for a bad argument or torchrun environment, before any group starts.
    """
    _check_arguments(json_path, run_dir, payload_bytes)
    rank, world = _number("RANK", 0), _number("WORLD_SIZE", 1)
    facts, warnings, problems = _examine(run_dir, world)
    if world > 1:
        label = "|".join((socket.gethostname(), torch.__version__, host.installed_version("lowcomm") or "source"))
        try:
            links, rank = doctor_links.measure_links(str(facts["backend"]), label, payload_bytes)
        except (RuntimeError, ValueError) as error:  # what torch raises for a peer that does not answer
            reason = (str(error).splitlines() or ["no reason given"])[0]
            problems.append(f"rank {rank} could not measure the links: {reason}")
        else:
            warnings += doctor_links.version_notes(links.labels)
            facts["links"] = doctor_links.as_facts(links)
    facts |= {"warnings": warnings, "problems": problems}
    if rank == 0:
        _print_report(facts)
        if json_path is not None:
            json_path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    else:
        for problem in problems:
            print(f"rank {rank}: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _check_arguments(json_path: Path | None, run_dir: Path, payload_bytes: int) -> None:
    if not _MIN_PAYLOAD_BYTES <= payload_bytes <= _MAX_PAYLOAD_BYTES:
        raise ConfigError(
            f"payload_bytes={payload_bytes} is outside {_MIN_PAYLOAD_BYTES}..{_MAX_PAYLOAD_BYTES}: "
            "use about 4000000, the size of a small fragment"
        )
    if run_dir.exists() and not run_dir.is_dir():
        raise ConfigError(f"run_dir={run_dir} is a file, not a directory: name a directory")
    if json_path is not None and (json_path.is_dir() or not json_path.parent.is_dir()):
        raise ConfigError(f"json={json_path} cannot be a file there: name a file in a directory that exists")


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdecimal() or (variable != "RANK" and int(text) < 1):
        raise ConfigError(f"{variable}={text!r} is not a count: start the program with torchrun, or unset it")
    return int(text)


def _examine(run_dir: Path, world: int) -> tuple[Facts, list[str], list[str]]:
    """Facts of this machine, warnings (a run starts but suffers) and problems (it does not)."""
    local_world = _number("LOCAL_WORLD_SIZE", 1)
    master = os.environ.get("MASTER_ADDR", "127.0.0.1")
    known = net.interfaces()
    backend = net.choose_backend(local_world)
    chosen = net.choose_interface(backend.value, master, known)
    disk = host.disk_speed(run_dir)
    total, available = host.memory_bytes()
    cores, soft_hard = host.usable_cores(), host.open_file_limit()
    facts: Facts = {
        "versions": host.package_versions(),
        "extras": {name: {p: host.installed_version(p) for p in wanted} for name, wanted in host.EXTRAS.items()},
        "git_commit": host.git_commit(),
        "cores": cores,
        "threads_per_rank": max(1, cores // local_world),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "memory_total_bytes": total,
        "memory_available_bytes": available,
        "gpus": host.gpus(),
        "world": world,
        "backend": backend.value,
        "backend_why": backend.why,
        "interface": chosen.value,
        "interface_why": chosen.why,
        "interfaces": [asdict(interface) for interface in known],
        "gloo_socket_ifname": os.environ.get("GLOO_SOCKET_IFNAME"),
        "nccl_socket_ifname": os.environ.get("NCCL_SOCKET_IFNAME"),
        "rendezvous": f"{master}:{_number('MASTER_PORT', host.DEFAULT_RENDEZVOUS_PORT)}",
        "free_ports": host.free_ports(),
        "disk": asdict(disk) | {"path": str(disk.path)},
        "shm_bytes": host.shm_bytes(),
        "open_files_soft": soft_hard[0],
        "open_files_hard": soft_hard[1],
    }
    warnings = net.network_warnings(master, world, chosen, known) + _host_warnings(facts, disk, world)
    problems = [] if disk.error is None else [f"{disk.path} cannot be written: {disk.error}"]
    missing = [name for name, version in facts["versions"].items() if version is None]
    if missing:
        problems.append(f"missing: {', '.join(missing)}; run pip install {' '.join(missing)}")
    return facts, warnings, problems


def _host_warnings(facts: Facts, disk: host.DiskSpeed, world: int) -> list[str]:
    notes: list[str] = []
    if disk.free_bytes < _MIN_FREE_BYTES:
        notes.append(
            f"{disk.free_bytes / 1e9:.1f} GB are free in {disk.path}: checkpoints may not fit, use another run_dir"
        )
    if disk.fsync_s is not None and disk.fsync_s > _SLOW_FSYNC_S:
        notes.append(f"fsync takes {disk.fsync_s * 1e3:.0f} ms in {disk.path}: save rarely or use a local disk")
    shm, soft = facts["shm_bytes"], facts["open_files_soft"]
    if shm is not None and shm < _MIN_SHM_BYTES:
        notes.append(f"/dev/shm has {shm / 1e6:.0f} MB: NCCL and loader workers may fail, give the container more")
    if soft is not None and soft < _MIN_OPEN_FILES:
        notes.append(f"the open-file limit is {soft}: many islands need more, run `ulimit -n 65536`")
    threads, asked = facts["threads_per_rank"], facts["omp_num_threads"]
    if asked is not None and asked.isdecimal() and int(asked) > threads:
        notes.append(f"OMP_NUM_THREADS={asked} on every rank is more than the cores: set {threads}")
    port = _number("MASTER_PORT", host.DEFAULT_RENDEZVOUS_PORT)
    if world == 1 and not host.port_is_free(port):
        notes.append(f"port {port} is taken on 127.0.0.1: give torchrun --master-port one of {facts['free_ports']}")
    return notes


def _print_report(facts: Facts) -> None:
    # A pipe or a log file has no width: 80 columns would cut the matrix.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    table = Table("what", "found", show_header=False, title="lowcomm doctor", title_justify="left")
    for what, found in _report_lines(facts):
        table.add_row(what, escape(found))
    console.print(table)
    console.print(_extras_table(facts["extras"]))
    if "links" in facts:
        print_links(console, facts["links"])
    for note in facts["warnings"]:
        console.print(f"[yellow]warning:[/yellow] {escape(note)}")
    for problem in facts["problems"]:
        console.print(f"[red]problem:[/red] {escape(problem)}")
    console.print("This machine is ready." if not facts["problems"] else "Fix the problems before you start a run.")


def _report_lines(facts: Facts) -> list[tuple[str, str]]:
    versions = [f"{name} {version or 'MISSING'}" for name, version in facts["versions"].items()]
    gpus = [f"{gpu['name']} ({gpu['memory_bytes'] / 2**30:.0f} GiB)" for gpu in facts["gpus"]]
    disk, shm = facts["disk"], facts["shm_bytes"]
    speed = disk["error"] or (f"fsync {disk['fsync_s'] * 1e3:.1f} ms, write {disk['write_bytes_per_s'] / 1e6:.0f} MB/s")
    names = ("gloo_socket_ifname", "nccl_socket_ifname", "omp_num_threads")
    limits = [str(facts[f"open_files_{kind}"] or "unlimited") for kind in ("soft", "hard")]
    return [
        ("versions", ", ".join(versions)),
        ("git commit", facts["git_commit"] or "not a git checkout, or git is missing"),
        ("cores", f"{facts['cores']} usable; {facts['threads_per_rank']} thread(s) per rank recommended"),
        ("memory", f"{_gib(facts['memory_available_bytes'])} free of {_gib(facts['memory_total_bytes'])}"),
        ("GPUs", ", ".join(gpus) or "none"),
        ("backend", f"{facts['backend']}: {facts['backend_why']}"),
        ("interface", f"{facts['interface']}: {facts['interface_why']}"),
        ("interfaces", ", ".join(_interface_text(i) for i in facts["interfaces"]) or "none found"),
        ("environment", ", ".join(f"{name.upper()}={facts[name] or '(not set)'}" for name in names)),
        ("rendezvous", facts["rendezvous"]),
        ("free ports", ", ".join(map(str, facts["free_ports"]))),
        ("disk", f"{disk['path']}: {disk['free_bytes'] / 1e9:.0f} GB free, {speed}"),
        ("/dev/shm", "none" if shm is None else _gib(shm)),
        ("open files", f"{limits[0]} (hard limit {limits[1]})"),
    ]


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"


def _interface_text(interface: dict[str, Any]) -> str:
    speed = interface["speed_mbit_per_s"]
    rate = "" if speed is None else f" {speed} Mbit/s"
    addresses = " ".join(interface["addresses"]) or "no address"
    return f"{interface['name']} {'up' if interface['up'] else 'down'}{rate} ({addresses})"


def _extras_table(extras: dict[str, dict[str, str | None]]) -> Table:
    table = Table("extra", "packages", "to install", title="extras", title_justify="left")
    for name, packages in extras.items():
        found = ", ".join(f"{package} {version or 'missing'}" for package, version in packages.items())
        missing = None in packages.values()
        table.add_row(name, found, escape(f"pip install 'lowcomm[{name}]'") if missing else "installed")
    return table


def print_links(console: Console, links: dict[str, Any]) -> None:
    labels = [f"{rank} {label.partition('|')[0]}" for rank, label in enumerate(links["labels"])]
    size = f"{links['payload_bytes'] / 1e6:g} MB payloads, row sends to column"
    parts = (("latency_ms", "latency, ms one way", ".3f"), ("bandwidth_mb_per_s", f"bandwidth, MB/s ({size})", ".1f"))
    if len(labels) > _WIDEST_MATRIX:
        console.print(f"{len(labels)} ranks: the matrices are too wide to print, --json FILE keeps them")
    else:
        for key, title, form in parts:
            table = Table("rank", *map(escape, labels), title=title, title_justify="left")
            for label, row in zip(labels, links[key], strict=True):
                table.add_row(escape(label), *("-" if v is None else format(v, form) for v in row))
            console.print(table)
    console.print(escape(links["verdict"]))
