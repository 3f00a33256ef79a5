"""`lowcomm federation keys | node | register | check | client | run`: what launch/federation starts."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lowcomm.types import ConfigError

if TYPE_CHECKING:
    from lowcomm.config import RunConfig

Parse = Callable[["RunConfig", Sequence[str], str], "RunConfig"]


def run_command(arguments: Sequence[str], parse: Parse) -> int:
    """Returns the exit code. Raises LowcommError. parse: (recipe's configuration, flags, name of the program)."""
    parser = _parser()
    options, flags = parser.parse_known_args(arguments)
    if flags and options.command != "client":
        parser.error(f"unrecognized arguments: {' '.join(flags)}")
    if options.command == "client":
        return _client(options, flags, parse)
    from lowcomm.federation import keys, submit

    if options.command == "keys":
        keys.make_keys(options.directory, options.clients, options.host, options.days)
        print(f"wrote {options.directory}: a certificate for {options.host} and the keys of {options.clients} clients")
    elif options.command == "node":
        keys.make_node(options.directory)
        print(
            f"wrote {options.directory}: send node.pub, fingerprint {keys.fingerprint(options.directory / 'node.pub')}"
        )
    elif options.command == "register":
        submit.register(options.superlink, options.ca, options.keys, options.wait_s)
        for key in options.keys:
            print(f"registered {key}, fingerprint {keys.fingerprint(key)}")
    elif options.command == "check":
        _check(options)
    else:
        return submit.run_federation(options.superlink, options.ca, options.clients, options.patience_s, options.wait_s)
    return 0


def _check(options: argparse.Namespace) -> None:
    from lowcomm.federation import keys
    from lowcomm.federation.engine import need_flower

    need_flower()
    for path, whence in ((options.ca, "get ca.crt from the server's owner"), (options.key, "lowcomm federation keys")):
        if not path.is_file():
            raise ConfigError(f"{path} is not there. Fix: {whence}")
    keys.check_server(options.superlink, options.ca, options.wait_s)
    print(f"{options.superlink}: TLS as {options.ca} says; this node's fingerprint is {keys.fingerprint(options.key)}")


def _client(options: argparse.Namespace, flags: Sequence[str], parse: Parse) -> int:
    from lowcomm.federation.client import run_client
    from lowcomm.federation.engine import need_flower
    from lowcomm.recipe import load

    need_flower()
    config = parse(load(options.recipe), flags, f"lowcomm federation client {options.recipe}")
    return run_client(config, options.client, options.clients, options.node, options.secret)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lowcomm federation", description="Runs across organisations, over Flower.")
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("keys", help="make the certificate of a server and the keys of its clients")
    make.add_argument("--directory", type=Path, required=True)
    make.add_argument("--clients", type=int, default=3)
    make.add_argument("--host", default="127.0.0.1", help="address or name that clients connect to")
    make.add_argument("--days", type=int, default=90, help="how long the certificate is valid")
    node = commands.add_parser("node", help="make the keys of one client, on the machine where they stay")
    node.add_argument("--directory", type=Path, required=True)
    register = commands.add_parser("register", help="let a SuperLink know the keys of its clients")
    check = commands.add_parser("check", help="look at a server's certificate before a client starts")
    run = commands.add_parser("run", help="start a run on a SuperLink and wait until it has ended")
    for command in (register, check, run):
        command.add_argument("--superlink", required=True, metavar="HOST:PORT")
        command.add_argument("--ca", type=Path, required=True, help="ca.crt of the server")
        command.add_argument("--wait-s", type=float, default=0.0, help="seconds to wait for a server that is starting")
    register.add_argument("keys", type=Path, nargs="+", help="node.pub of each client")
    check.add_argument("--key", type=Path, required=True, help="node.pub of this client")
    run.add_argument("--clients", type=int, required=True)
    run.add_argument("--patience-s", type=float, default=600.0, help="seconds to wait until all clients are connected")
    what = "train as one client; flags of lowcomm train go last"
    client = commands.add_parser("client", help=what, allow_abbrev=False)
    client.add_argument("recipe", metavar="RECIPE.py:FUNCTION")
    client.add_argument("--client", type=int, required=True, help="its number, from 0")
    client.add_argument("--clients", type=int, required=True, help="how many there are")
    client.add_argument(
        "--node", required=True, metavar="127.0.0.1:PORT", help="Runtime API of this machine's SuperNode"
    )
    client.add_argument("--secret", type=Path, required=True, help="worker.secret, which the SuperNode was given too")
    return parser
