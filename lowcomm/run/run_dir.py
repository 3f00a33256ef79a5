"""The run directory: a contract that reports, benchmarks and other people's scripts read."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import IO, Any, Literal

import torch

from lowcomm.private_files import make_directory
from lowcomm.types import CheckpointError, ConfigError
from lowcomm.version import __version__


def write_json(path: Path, value: Any) -> None:
    """Atomic: write beside it, fsync, rename. Raises CheckpointError where the disk is full or can't be written to."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as f:
            json.dump(value, f, indent=2)
            f.write("\n")
            f.flush()
            os.fsync(f.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path} could not be written: {error.strerror or error}. "
            "Free some space or make the directory writable, and go on with --resume auto"
        ) from error


Resume = bool | Literal["auto"]


def has_checkpoint(directory: Path) -> bool:
    """Whether any island's part of a checkpoint is here."""
    return any((directory / "checkpoints").glob("*/island-*"))


def check_directory(directory: Path, resume: Resume) -> None:
    """Raise ConfigError if a run can't start in (or resume from) this directory. Creates nothing."""
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"run_dir = {str(directory)!r} is a file. Fix: pass --run-dir DIR")
    _check_not_in_use(directory)
    _check_holds_run(directory, resume)
    parent = directory
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConfigError(f"run_dir = {str(directory)!r} can't be written. Fix: pass --run-dir with a writable place")


def _check_holds_run(directory: Path, resume: Resume) -> None:
    if resume == "auto":
        return
    has_run = (directory / "config.json").exists()
    if resume and not has_run:
        raise ConfigError(f"run_dir = {str(directory)!r} holds no run to resume. Fix: leave out --resume")
    if resume and not has_checkpoint(directory):
        raise ConfigError(
            f"run_dir = {str(directory)!r} holds a run without a checkpoint. "
            "Fix: pass --resume auto, which starts it over there, or another --run-dir"
        )
    if has_run and not resume:
        more = "continues it" if has_checkpoint(directory) else "starts it over there, as it has no checkpoint"
        raise ConfigError(
            f"run_dir = {str(directory)!r} already holds a run. Fix: pass --resume auto, which {more}, or another "
            "--run-dir"
        )


def _check_not_in_use(directory: Path) -> None:
    if is_locked(directory):
        raise _in_use(directory)


def is_locked(directory: Path) -> bool:
    """Whether rank 0 of a run writes here, on whichever machine that shares the directory.

    A shared lock is refused while a run holds its exclusive one; the islands of one run may all look at once.
    """
    path = directory / ".lock"
    if not path.exists():
        return False
    with path.open(encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _in_use(directory: Path) -> ConfigError:
    return ConfigError(f"run_dir = {str(directory)!r} is in use by another run. Fix: pass another --run-dir")


def lock(directory: Path, rank: int, resume: Resume) -> IO[str]:
    """Create the directory and take its lock; keep the file open as long as the run. Two runs in one are refused.

    rank: of the first process of each node. Nodes may share the file system, so that each has a lock file of its own.
    Raises ConfigError if another run holds it, or has come and gone since the directory was looked at.
    """
    path = directory / (".lock" if rank == 0 else f".lock-{rank}")
    try:
        make_directory(directory)
        handle = path.open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"run_dir = {str(directory)!r} can't be written ({error.strerror}). Fix: pass another --run-dir"
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _check_holds_run(directory, resume)
    except OSError as error:
        handle.close()
        raise _in_use(directory) from error
    except ConfigError:
        handle.close()
        raise
    return handle


def environment() -> dict[str, Any]:
    """Versions, commit, hardware, interfaces and the command."""
    packages = (
        "torch",
        "numpy",
        "transformers",
        "tokenizers",
        "safetensors",
        "datasets",
        "peft",
        "deepspeed",
        "accelerate",
        "trl",
        "lightning",
        "pytorch-optimizer",
        "triton",
    )
    versions = {"lowcomm": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "commit": git_commit(),
        "hardware": hardware(),
        "interfaces": sorted(p.name for p in Path("/sys/class/net").glob("*")),
        "command": sys.argv,
    }


def hardware() -> dict[str, Any]:
    """Processor, cores, memory and accelerators of this machine."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [x for x in info.read_text(encoding="utf-8").splitlines() if x.startswith("model name")]
        cpu = lines[0].split(":", 1)[1].strip() if lines else cpu
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": cpu, "cores": available_cores(), "memory_bytes": memory_bytes, "gpus": gpus}


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def git_commit() -> str | None:
    """Commit of the checkout that this package runs from, with "+changes" if it is not clean; None outside git."""
    here = Path(__file__).resolve().parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")
