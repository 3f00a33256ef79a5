"""Small runs for the tests of runs, checkpoints and the command line."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import inspect
import itertools
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from lowcomm import checkpoint
from lowcomm.config import CheckpointConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig, TextFiles
from lowcomm.model import ModelConfig
from lowcomm.schedule import EveryH, EveryStep, PostLocal, Schedule, Streaming
from lowcomm.trainer import train

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
from pathlib import Path
from tests.support.runs import small, variant

def local():
    return small(Path({corpus!r}), None)

def ddp():
    return variant("ddp", Path({corpus!r}), None)

def post_local():
    return variant("post_local", Path({corpus!r}), None)

def streaming():
    return variant("streaming", Path({corpus!r}), None)
"""


_PORTS = itertools.count(os.getpid() * 61)


def write_corpus(directory: Path) -> Path:
    """Eight small files of real text, cut from a module of the standard library: not the same with every Python."""
    text = inspect.getsource(argparse)
    for i in range(8):
        (directory / f"part{i}.txt").write_text(text[i * 2500 : (i + 1) * 2500], encoding="utf-8")
    return directory


def small(corpus: Path, run_dir: Path | None, **changes: Any) -> RunConfig:
    """2 simulated islands, nano, 12 steps in 3 rounds, a checkpoint after each round; `changes` are fields."""
    base = RunConfig(
        islands=2,
        steps=12,
        threads=1,
        transport="simulated",
        device="cpu",
        run_dir=run_dir,
        tensorboard=False,
        data=DataConfig(source=TextFiles(glob=str(corpus / "*.txt")), seq_len=32, batch_size=2, validation_sequences=8),
        model=ModelConfig(preset="nano"),
        sync=SyncConfig(every=4),
        checkpoint=CheckpointConfig(every_rounds=1, keep=4, export=False),
    )
    return dataclasses.replace(base, **changes)


def variant(name: str, corpus: Path, run_dir: Path | None, **changes: Any) -> RunConfig:
    """The small run with another schedule; "local" is the small run itself. The last step is a sync in each."""
    schedules: dict[str, Schedule] = {
        "local": EveryH(),
        "ddp": EveryStep(),
        "post_local": PostLocal(warmup_steps=5),
        "streaming": Streaming(fragments=2, delay=1),  # starts after steps 2, 4, 6 ..., lands one step later
    }
    steps = 13 if name == "post_local" else 12
    return small(corpus, run_dir, steps=steps, sync=SyncConfig(every=4, schedule=schedules[name]), **changes)


def write_recipe(directory: Path, corpus: Path) -> Path:
    """A recipe file with the small run and its variants."""
    path = directory / "small_recipe.py"
    path.write_text(RECIPE.format(corpus=str(corpus)), encoding="utf-8")
    return path


def summary(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


OUTCOME = ("weights_sha256", "val_loss", "val_bpb", "tokens", "steps", "rounds", "bytes_sent", "bytes_received")
CLOCKS = ("time_s", "resumes", "sync_s", "blocked_s")
RUN = "run"
"""The random number that tells the payloads of two runs apart, in the global part of checkpoints."""


def outcome(run_dir: Path) -> dict[str, Any]:
    """What must be equal in two runs that train the same: results, counted bytes, and the last checkpoint whole.

    The checkpoint has model, inner and outer optimizer, codec, random and data state of all islands.
    """
    root = run_dir / "checkpoints"
    last = [name for name in checkpoint.names(root) if "stop" not in name][-1]
    state: dict[str, Any] = {"checkpoint": last}
    for path in sorted((root / last).glob("island-*/*")):
        name = f"{path.parent.name}/{path.name}"
        if path.suffix == ".safetensors":
            for key, tensor in load_file(path).items():
                state[f"{name}/{key}"] = (str(tensor.dtype), tuple(tensor.shape), tensor.numpy().tobytes())
        elif path.name != "manifest.json":
            values = json.loads(path.read_text(encoding="utf-8"))
            state |= {f"{name}/{key}": value for key, value in values.items() if key not in (*CLOCKS, RUN)}
    return {key: summary(run_dir)[key] for key in OUTCOME} | state


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Without a diff of megabytes when it fails."""
    differing = [key for key in {**a, **b} if a.get(key) != b.get(key)]
    assert not differing, f"these differ: {differing}"


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody has, from a range that the kernel gives to nobody by itself.

    Workers begin at different ones, and no port is given twice: whoever asked for the last one may not have it yet.
    """
    while True:
        port = 10_000 + next(_PORTS) % 10_000
        with socket.socket() as s:
            with contextlib.suppress(OSError):
                s.bind(("127.0.0.1", port))
                return port


def forkserver() -> ForkServerContext:
    """Where processes are forked; the first use in a session decides what it has loaded."""
    context = multiprocessing.get_context("forkserver")
    heavy = ["lowcomm.trainer", "transformers.models.llama.modeling_llama", "peft"]
    context.set_forkserver_preload([*heavy, "tests.support.runs"])
    return context


def start(
    function: Callable[..., int | None], args: Sequence[Any], log: Path, environment: dict[str, str] | None = None
) -> ForkServerProcess:
    """Run `function(*args)` in a process forked from a clean one; its exit code is what the function returns."""
    child = forkserver().Process(target=_child, args=(function, tuple(args), str(log), dict(environment or {})))
    child.start()
    return child


def _child(function: Callable[..., int | None], args: tuple[Any, ...], log: str, environment: dict[str, str]) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ.update(environment)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    sys.exit(function(*args))


class Template:
    """A process that has imported what takes long to import, and forks children that run functions."""

    def __init__(self, modules: Sequence[str], environment: dict[str, str]) -> None:
        """environment: set before the imports, and in every child."""
        self._wire, theirs = forkserver().Pipe()
        self._process = forkserver().Process(target=_serve, args=(theirs, tuple(modules), environment))
        self._process.start()
        theirs.close()

    def run(
        self,
        function: Callable[..., int | None],
        args: Sequence[Any],
        environments: Sequence[dict[str, str]],
        log: Path,
    ) -> list[int]:
        """Exit codes of one child per environment, each running `function(*args)`; their output goes to the log."""
        self._wire.send((function, tuple(args), tuple(environments), str(log)))
        if not self._wire.poll(230):
            self.close()
            raise AssertionError(f"no end after 230 s: {log.read_text(encoding='utf-8')[-4000:]}")
        return self._wire.recv()

    def close(self) -> None:
        """End the process, and with it children that hang."""
        if self._process.pid is not None and self._process.is_alive():
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.join()


def _serve(wire: Connection, modules: Sequence[str], environment: dict[str, str]) -> None:
    os.setpgrp()
    os.environ.update(environment)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    for module in modules:
        importlib.import_module(module)
    while True:
        function, args, environments, log = wire.recv()
        children = [_fork(function, args, variables, log) for variables in environments]
        wire.send([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])


def _fork(function: Callable[..., int | None], args: tuple[Any, ...], environment: dict[str, str], log: str) -> int:
    if child := os.fork():
        return child
    code: int | None = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.environ.update(environment)
        code = function(*args)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


def wait(child: ForkServerProcess, log: Path, timeout_s: float = 180) -> int:
    """The exit code; a child that hangs is killed and fails the test."""
    child.join(timeout_s)
    if child.exitcode is None:
        child.kill()
        child.join()
        raise AssertionError(f"no end after {timeout_s} s: {log.read_text(encoding='utf-8')}")
    return child.exitcode


def islands_environment(islands: int) -> list[dict[str, str]]:
    """What torchrun sets in each of its processes."""
    shared = {
        "WORLD_SIZE": str(islands),
        "LOCAL_WORLD_SIZE": str(islands),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(islands)]


def run_islands(
    arguments: Sequence[str], islands: int, log: Path, environment: dict[str, str] | None = None
) -> list[int]:
    """Exit codes of `lowcomm ARGUMENTS` as torchrun would start it: one process per island."""
    from lowcomm.cli import main

    variables = [{**one, **(environment or {})} for one in islands_environment(islands)]
    started = [start(main, (list(arguments),), log, one) for one in variables]
    return [wait(child, log) for child in started]


def check_same_bits(config: RunConfig, recipe: str, *, stop_at_step: int) -> dict[str, Any]:
    """A simulated run in `config.run_dir`, one that stops and goes on, and one of two processes end alike; the outcome.

    recipe: FILE:FUNCTION of the same configuration. Their directories stand beside the first: halves, real.
    """
    assert config.run_dir is not None
    beside = config.run_dir.parent
    assert train(config) == 0
    whole = outcome(config.run_dir)
    halves = dataclasses.replace(config, run_dir=beside / "halves")
    stop = dataclasses.replace(config.checkpoint, stop_at_step=stop_at_step)
    assert train(dataclasses.replace(halves, checkpoint=stop)) == 3
    assert train(dataclasses.replace(halves, resume=True)) == 0
    assert_same(outcome(beside / "halves"), whole)
    log = beside / "log"
    arguments = ["train", recipe, "--transport", "collective", "--run-dir", str(beside / "real")]
    assert run_islands(arguments, 2, log) == [0, 0], log.read_text(encoding="utf-8")
    assert_same(outcome(beside / "real"), whole)
    return whole


def late_main(arguments: Sequence[str], wire_s: float) -> int:
    """`lowcomm ARGUMENTS` in one process, on a wire that takes `wire_s` for each payload."""
    from lowcomm.cli import main
    from lowcomm.transport import Collective
    from lowcomm.transport.base import Altered

    sums = Collective.weighted_sum

    def slow(self: Collective, vectors: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> Altered:
        time.sleep(wire_s)
        return sums(self, vectors, weights, out)

    Collective.weighted_sum = slow
    return main(arguments)
