"""One node's part of a run on several: meets the other nodes, then runs this node's ranks.

`python -m lowcomm.run.node OPTIONS -- ARGUMENTS` runs `lowcomm ARGUMENTS` in every rank; launch/node.sh starts it, with
the run's secret in the environment. Only who knows the secret is answered, on one address.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from lowcomm.rendezvous.client import KeyClient, RefusedError, RendezvousError
from lowcomm.rendezvous.nodes import Node, meet, rendezvous, take_secret, write_meeting
from lowcomm.run.ranks import Ended, Start, run_ranks
from lowcomm.types import ConfigError


def run_node(node: Node, secret: bytes, arguments: Sequence[str]) -> Ended:
    """Run this node's ranks to their end. Raises ConfigError or RendezvousError before any has started."""
    with rendezvous(node, secret) as client:
        return run_ranks(node.ranks, arguments, {}, lambda *given: _start(client, node, secret, *given))


def _start(client: KeyClient, node: Node, secret: bytes, directory: Path, signals: Sequence[int]) -> Start | None:
    place = meet(client, node, lambda: bool(signals))
    if place is None:
        return None
    store = write_meeting(directory, client.address, node.port, secret)
    return Start(first_rank=place.first_rank, ranks=place.ranks, store=store)


def _parse(options: Sequence[str]) -> Node:
    parser = argparse.ArgumentParser(prog="lowcomm.run.node", allow_abbrev=False)
    for name in ("nodes", "node-rank", "ranks", "port"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--master", required=True)
    parser.add_argument("--address")
    given = parser.parse_args(options)
    return Node(
        index=given.node_rank,
        nodes=given.nodes,
        ranks=given.ranks,
        master=given.master,
        port=given.port,
        address=given.address,
    )


def main(words: Sequence[str]) -> int:
    """Returns the exit code: 0 done, 1 failed, 2 bad input, 3 stopped with everything saved."""
    at = words.index("--")
    try:
        ended = run_node(_parse(words[:at]), take_secret(), words[at + 1 :])
    except (ConfigError, RefusedError) as error:
        print(f"lowcomm: error: {error}", file=sys.stderr)
        return 2
    except RendezvousError as error:
        print(f"lowcomm: error: {error}", file=sys.stderr)
        return 1
    for rank, code in ended.failed.items():
        if code < 0:
            name = signal.Signals(-code).name
            print(f"lowcomm: error: rank {rank} of {os.uname().nodename} was killed by {name}", file=sys.stderr)
    return ended.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
