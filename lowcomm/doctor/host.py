"""What `lowcomm doctor` finds out about one machine without any other: versions, hardware, disk, limits."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch

CORE_PACKAGES = ("torch", "numpy", "transformers", "tokenizers", "safetensors", "tyro", "rich", "xxhash")
EXTRAS: dict[str, tuple[str, ...]] = {
    "data": ("datasets",),
    "peft": ("peft",),
    "deepspeed": ("deepspeed",),
    "kernels": ("numba", "triton"),
    "codecs": ("zstandard", "constriction"),
    "report": ("plotly", "tensorboard", "kaleido"),
    "hf": ("accelerate", "trl"),
    "lightning": ("lightning",),
    "optimizers": ("pytorch-optimizer",),
    "elastic": ("torchft",),
    "flower": ("flwr",),
    "privacy": ("dp-accounting",),
    "secure": ("cryptography",),
    "store": ("obstore",),
    "ui": ("starlette", "uvicorn", "jinja2", "plotly"),
    "planner": ("scikit-learn",),
    "docs": ("mkdocs-material", "mkdocstrings-python"),
}
"""Extra -> the distributions it brings; a test keeps it equal to pyproject.toml."""

DEFAULT_RENDEZVOUS_PORT = 29500
_FSYNC_BYTES = 4096
_WRITE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class DiskSpeed:
    """Of the directory that will hold the run, or of its nearest existing parent."""

    path: Path
    free_bytes: int
    fsync_s: float | None
    """Median of writing 4 KiB and fsync; None: the directory cannot be written."""
    write_bytes_per_s: float | None
    error: str | None


def installed_version(package: str) -> str | None:
    """Version of a distribution, read from its metadata: nothing is imported."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def package_versions() -> dict[str, str | None]:
    """Versions of Python, lowcomm and what lowcomm always needs; None: missing."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    versions["lowcomm"] = installed_version("lowcomm") or "source"
    versions |= {name: installed_version(name) for name in CORE_PACKAGES}
    versions["torch"] = str(torch.__version__)  # the metadata of a local build leaves "+cpu" out
    return versions


def usable_cores() -> int:
    """Cores that this process may use: affinity mask and cgroup quota count, not what the board has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit() and quota[1].isdigit() and int(quota[1]) > 0:
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return cores


def memory_bytes() -> tuple[int, int]:
    """(total, available) bytes of memory; a cgroup limit below the machine's total wins."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = total
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    limit = _read("/sys/fs/cgroup/memory.max")
    if limit.isdigit():
        used = _read("/sys/fs/cgroup/memory.current")
        total = min(total, int(limit))
        available = min(available, max(0, total - (int(used) if used.isdigit() else 0)))
    return total, available


def gpus() -> list[dict[str, str | int]]:
    """Name and memory of every visible CUDA device."""
    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [{"name": str(gpu.name), "memory_bytes": int(gpu.total_memory)} for gpu in found]


def free_ports(count: int = 3) -> list[int]:
    """TCP ports that are free on 127.0.0.1 now. Sockets are bound, never listened on."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return sorted(sock.getsockname()[1] for sock in sockets)
    finally:
        for sock in sockets:
            sock.close()


def port_is_free(port: int) -> bool:
    """Whether 127.0.0.1:port can be bound."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        # Without it a port that a finished run left in TIME_WAIT looks taken.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def disk_speed(run_dir: Path) -> DiskSpeed:
    """Free space, fsync and write speed where `run_dir` is or will be; it is not created."""
    path = run_dir.resolve()
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free
    try:
        fsync_s, rate = _time_writes(path)
    except OSError as error:
        return DiskSpeed(path=path, free_bytes=free, fsync_s=None, write_bytes_per_s=None, error=str(error))
    return DiskSpeed(path=path, free_bytes=free, fsync_s=fsync_s, write_bytes_per_s=rate, error=None)


def _time_writes(path: Path) -> tuple[float, float]:
    samples: list[float] = []
    with NamedTemporaryFile(dir=path, prefix=".lowcomm-doctor-") as file:
        for size in [_FSYNC_BYTES] * 5 + [_WRITE_BYTES]:
            block = b"\x5a" * size
            start = time.monotonic()
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
            samples.append(time.monotonic() - start)
    return statistics.median(samples[:5]), _WRITE_BYTES / max(samples[5], 1e-9)


def shm_bytes() -> int | None:
    """Size of /dev/shm, which NCCL and data-loader workers need; None: there is none."""
    path = Path("/dev/shm")
    return shutil.disk_usage(path).total if path.is_dir() else None


def open_file_limit() -> tuple[int | None, int | None]:
    """(soft, hard) limit of open files; None: unlimited."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    infinity = resource.RLIM_INFINITY
    return None if soft == infinity else soft, None if hard == infinity else hard


def git_commit() -> str | None:
    """Commit of the checkout that lowcomm runs from, "-modified" added when files differ.

    None: no checkout, or git is missing.
    """
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():  # installed inside somebody else's repository: not our commit
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}-modified" if changed else commit


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
