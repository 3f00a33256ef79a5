"""The command line: `lowcomm train | simulate | federation | plan | sweep | report | ui | recipes | doctor`."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lowcomm.flags.parse import parse_flags
from lowcomm.types import ConfigError, LowcommError
from lowcomm.version import __version__

if TYPE_CHECKING:
    from lowcomm.config import RunConfig

USAGE = f"""\
lowcomm {__version__}: train language models when the links between the machines are slow

  lowcomm train RECIPE.py:FUNCTION [--islands N] [--steps N] [--sync.every H] ...   train; --help lists every field
  lowcomm simulate RECIPE.py:FUNCTION ...      the same run with all islands in one process (same bits)
  lowcomm federation keys | node | register | check | client | run ...   the same run across organisations, over Flower
  lowcomm train RECIPE.py:FUNCTION --store URL a run that islands join and leave; a directory, s3://, gs://, az://
  lowcomm join URL                             become a member of it, from anywhere, at any time
  lowcomm status | log | verify | stop URL     who is in it, its commits, the proof of its history, its end
  lowcomm follow URL DIR                       keep its newest weights in a directory that transformers loads
  lowcomm audit RUN [--rounds K]               compute random rounds of a run again, and compare every step's hash
  lowcomm verify RUN_A RUN_B                   the first step in which two runs of one recipe differ, and who is wrong
  lowcomm chaos [PLAN] [--seed S --faults N]   faults on purpose on such a run, and whether its history stays one
  lowcomm plan --parameters N --islands N ...  H, fragments, codec and streams for a link, with what they cost
  lowcomm sweep RECIPE.py:FUNCTION --sizes 32,48,nano --islands 1,2,4 --every 16,64   a scaling law through small runs
  lowcomm report RUN [RUN ...] [--out FILE]    one HTML page of one or several runs
      [--trace trace.json]                     and what each island did when, for ui.perfetto.dev
  lowcomm ui [--runs-dir DIR] [--port N]       the same in a browser of this machine: choose, start, watch, compare
  lowcomm recipes                              the recipes that came with the package
  lowcomm recipes copy NAME                    put one into the current directory to edit it
  lowcomm recipes check RECIPE.py:FUNCTION ... load one and read its flags as `lowcomm train` would; starts nothing
  lowcomm doctor [--json FILE]                 what is installed, which network is used; link speeds under torchrun

On several machines: torchrun --nnodes ... -m lowcomm.cli train RECIPE.py:FUNCTION
Exit codes: 0 done, 1 failed, 2 bad input (nothing started), 3 stopped by a signal with everything saved.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if command == "--version":
        print(f"lowcomm {__version__}")
        return 0
    commands = {
        "train": lambda a: _train(a, []),
        "simulate": lambda a: _train(a, ["--transport", "simulated"]),
        "join": _join,
        "follow": _follow,
        **{name: functools.partial(_look, name) for name in ("status", "log", "verify", "stop")},
        "audit": _audit,
        "federation": _federation,
        "chaos": _chaos,
        "plan": _plan,
        "sweep": _sweep,
        "report": _report,
        "ui": _ui,
        "recipes": _recipes,
        "doctor": _doctor,
    }
    if command not in commands:
        return _fail(f"there is no command {command!r}. Fix: use one of {', '.join(commands)}", 2)
    return _guarded(lambda: commands[command](arguments[1:]))


def _guarded(call: Callable[[], int]) -> int:
    """What the call returns, or the exit code of its error, which is told in one line."""
    try:
        return call()
    except ConfigError as error:
        return _fail(str(error), 2)
    except LowcommError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted before the first step or after the last one: nothing was saved by this", 1)
    except OSError as error:
        return _fail(f"{error.strerror or error} ({error.filename or 'no file named'}): the run stops", 1)


def _train(arguments: Sequence[str], extra: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        if not arguments:
            raise ConfigError("no recipe is given. Fix: lowcomm train FILE.py:FUNCTION; `lowcomm recipes` lists them")
        from lowcomm.config import RunConfig

        parse_flags(RunConfig(), ["--help"], "lowcomm train FILE.py:FUNCTION")
    from lowcomm.flags.early import refuse_early
    from lowcomm.recipe import find, load
    from lowcomm.run.ranks import follow_supervisor

    follow_supervisor()
    refuse_early(find(arguments[0])[0], arguments[1:])
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's threads: none is needed, and with them nothing forks
    from lowcomm.membership import World

    overrides = [*extra, *arguments[1:]]
    default = load(arguments[0])
    config = parse_flags(default, overrides, f"lowcomm train {arguments[0]}")
    if config.store is not None:
        from lowcomm.storerun.commands.start import start

        return start(config, _guarded)
    world = World.from_environment()
    if world.under_torchrun or config.transport == "simulated":
        return _train_here(config)
    from lowcomm.run.launch import train_apart

    return train_apart(config, world, ["train", arguments[0], *overrides], _train_here, _guarded)


def _train_here(config: RunConfig) -> int:
    from lowcomm.run.preload import preload

    preload()
    from lowcomm.report.console import show_run
    from lowcomm.trainer import train

    try:
        return train(config, show=show_run)
    except ConfigError as error:
        return _fail(str(error), 2)  # in every process: torchrun ends the others, rank 0 too, when the first has left


def _join(arguments: Sequence[str]) -> int:
    from lowcomm.run.ranks import follow_supervisor

    follow_supervisor()
    from lowcomm.storerun.commands.join import join

    return join(arguments)


def _audit(arguments: Sequence[str]) -> int:
    from lowcomm.verification.commands import run_audit

    return run_audit(arguments)


def _follow(arguments: Sequence[str]) -> int:
    from lowcomm.storerun.commands.follow import follow

    return follow(arguments)


def _look(name: str, arguments: Sequence[str]) -> int:
    if name == "verify" and len(arguments) == 2 and not any(a.startswith("-") for a in arguments):
        from lowcomm.verification.commands import run_referee

        return run_referee(Path(arguments[0]), Path(arguments[1]))
    from lowcomm.storerun.commands.look import look

    return look(name, arguments)


def _chaos(arguments: Sequence[str]) -> int:
    from lowcomm.chaos.command import chaos

    return chaos(arguments)


def _federation(arguments: Sequence[str]) -> int:
    from lowcomm.federation.command import run_command

    return run_command(arguments, parse_flags)


def _plan(arguments: Sequence[str]) -> int:
    from lowcomm.planner.command import run_planner

    return run_planner(arguments)


def _sweep(arguments: Sequence[str]) -> int:
    from lowcomm.flags.early import refuse_early
    from lowcomm.recipe import find
    from lowcomm.sweep.options import read_options

    options, rest = read_options(arguments)
    refuse_early(find(options.recipe)[0], rest)
    from lowcomm.sweep.command import sweep

    return sweep(options, rest, arguments, parse_flags)


def _report(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="lowcomm report", description="Write one HTML page of one or several runs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories, runs/NAME")
    parser.add_argument("--out", type=Path, default=None, help="file to write (default: report.html in the first run)")
    parser.add_argument("--trace", type=Path, default=None, help="also write Chrome trace event JSON, for Perfetto")
    options = parser.parse_args(arguments)
    from lowcomm.report.console import show_runs

    show_runs(options.runs, options.out)
    if options.trace is not None:
        from lowcomm.report.trace import write_trace

        print(f"trace: {write_trace(options.runs, options.trace)}")
    return 0


def _ui(arguments: Sequence[str]) -> int:
    from lowcomm.ui.command import run_ui

    return run_ui(arguments)


def _recipes(arguments: Sequence[str]) -> int:
    from lowcomm.recipe import copy, packaged

    if not arguments:
        width = max((len(r.name) for r in packaged()), default=0)
        for recipe in packaged():
            print(f"{recipe.name:<{width}}  {recipe.summary}")
        return 0
    if arguments[0] == "check" and len(arguments) > 1:
        return _check_recipe(arguments[1:])
    if arguments[0] != "copy" or len(arguments) != 2:
        raise ConfigError("usage: lowcomm recipes | lowcomm recipes copy NAME | lowcomm recipes check RECIPE [FLAGS]")
    print(f"wrote {copy(arguments[1], Path.cwd())}")
    return 0


def _check_recipe(arguments: Sequence[str]) -> int:
    from lowcomm.flags.early import refuse_early
    from lowcomm.recipe import find, load

    refuse_early(find(arguments[0])[0], arguments[1:])
    from lowcomm.config_check import check
    from lowcomm.membership import DEFAULT_ISLANDS

    config = parse_flags(load(arguments[0]), arguments[1:], f"lowcomm train {arguments[0]}")
    islands = DEFAULT_ISLANDS if config.islands is None else config.islands
    check(config, islands)
    print(f"{arguments[0]}: run {config.name}, {islands} islands, {config.steps} inner steps")
    return 0


def _doctor(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="lowcomm doctor", description="Check this machine and its links.")
    parser.add_argument("--json", type=Path, default=None, help="also write the findings to this file")
    parser.add_argument("--run-dir", type=Path, default=Path("runs"), help="where runs would be written")
    options = parser.parse_args(arguments)
    from lowcomm.doctor.command import run_doctor

    return run_doctor(json_path=options.json, run_dir=options.run_dir)


def _fail(message: str, code: int) -> int:
    print(f"lowcomm: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _leave(code: int) -> None:
    """End this process. The threads of a broken group would abort a rank that failed, after its last line."""
    if code == 1 and "RANK" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    _leave(main())
