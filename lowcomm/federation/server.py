"""The ServerApp: hands each client's exchanges to the relay and the answers back, until all clients have ended.

A client replies to a message when its trainer has posted something, or at once if it still waits for an answer. A
SuperNode handles one message at a time and sleeps for three seconds when it finds none, so a second, empty one is kept
waiting for it while its trainer computes and for BRISK_S of an exchange: without it each exchange would take a sleep.

The run fails, with the client's number, if one ends with an error, dies, leaves, or sends what can't be used: the
others are told, save what they have with the pseudo-gradient pending, and end. A run without clients fails too.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from lowcomm.federation.mailbox import Outcome
from lowcomm.federation.packing import pack_answers, unpack_requests
from lowcomm.transport.relay import Answer, Relay, Request
from lowcomm.types import LowcommError, PayloadError, TransportError

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from flwr.serverapp import Grid, ServerApp

STOPPED = 3
"""Exit code of a client that was stopped with everything saved; of the run if all clients were."""
POLL_S = 0.3
"""Flower shows a reply before its objects have come, and who asks for them too early waits for a second."""
REQUEST_S = 0.02
"""What one question for replies may cost: with many clients each is asked less often."""
BRISK_S = 4.0
"""For so long after an exchange began, clients that wait for its answer are kept from going to sleep."""
MESSAGES = 2
"""Messages that a client has at a time: one that it answers, one that waits for it."""
TTL_S = 7 * 86400.0
"""Flower drops a message that was not answered for so long: a bound on what a client computes between two exchanges."""
FAREWELL_S = 5.0
"""How long to wait until clients have fetched the message that tells them that their last one has arrived."""
NODES_S = 1.0
"""Seconds between two looks at which nodes are online."""


class FederationError(LowcommError):
    """The run of a federation failed; the message names the client."""


@dataclass
class Client:
    """One client, as the server sees it."""

    node: int
    island: int | None = None
    """What it says that it is; None before its first reply."""
    due: list[Answer] = field(default_factory=list)
    """Answers for its next message."""
    asked: int = 0
    """Exchanges that it has posted and has no answer of."""
    asked_at: float = 0.0
    outcome: Outcome | None = None
    told: bool = False
    """Whether it knows that the run has failed."""

    @property
    def name(self) -> str:
        """For people."""
        return f"client {self.island}" if self.island is not None else f"node {self.node}"


class Session:
    """One run on the server."""

    def __init__(self, grid: Grid, clients: int, patience_s: float) -> None:
        """patience_s: how long to wait until all clients are there."""
        self.grid = grid
        self.clients = clients
        self.patience_s = patience_s
        self.relay = Relay(clients)
        self.nodes: dict[int, Client] = {}
        self.poll_s = max(POLL_S, clients * REQUEST_S)
        self.arrived: SimpleQueue[tuple[Client, Message | str]] = SimpleQueue()
        self.sent: dict[str, int] = {}
        """Message id -> node, of messages without a reply."""
        self.failure: str | None = None

    def run(self) -> list[Outcome]:
        """To the end; outcomes in island order. Raises FederationError."""
        for node in self._wait_for_nodes():
            self.nodes[node] = Client(node=node)
            threading.Thread(target=self._fetch, args=(self.nodes[node],), daemon=True).start()
        looked = time.monotonic()
        while any(c.outcome is None for c in self.nodes.values()):
            self._send()
            self._take()
            if time.monotonic() - looked > NODES_S:
                looked = time.monotonic()
                self._look_for_leavers()
        over = time.monotonic()
        while self.sent and time.monotonic() - over < FAREWELL_S:
            self._take()
        return self._outcomes()

    def _outcomes(self) -> list[Outcome]:
        ended = sorted(self.nodes.values(), key=lambda c: (c.island is None, c.island))
        if self.failure is None and len({c.outcome.weights_sha256 for c in ended if c.outcome is not None}) > 1:
            self.failure = "the clients ended with different global weights"
        if {c.outcome.code for c in ended if c.outcome is not None} == {STOPPED}:
            self.failure = None
        if self.failure is not None:
            raise FederationError(self.failure)
        return [c.outcome for c in ended if c.outcome is not None]

    def _wait_for_nodes(self) -> list[int]:
        start = time.monotonic()
        while True:
            found = sorted(self.grid.get_node_ids())
            if len(found) >= self.clients:
                break
            if time.monotonic() - start > self.patience_s:
                raise FederationError(
                    f"only {len(found)} of {self.clients} clients are connected after {self.patience_s:g} s. Fix: "
                    "start the others with launch/federation/client.sh, or register their keys"
                )
            time.sleep(POLL_S)
        if len(found) > self.clients:
            raise FederationError(
                f"{len(found)} nodes are connected, but the run is for {self.clients} clients. Fix: stop the others, "
                f"or start the run for {len(found)}"
            )
        return found

    def _send(self) -> None:
        from flwr.app import Message

        unreplied = Counter(self.sent.values())
        messages: list[tuple[Client, Message]] = []
        for client in self.nodes.values():
            if client.outcome is not None:
                continue
            under_way = unreplied[client.node]
            if under_way < MESSAGES and (client.due or (self.failure is not None and not client.told)):
                content = pack_answers(client.due, self.failure)
                client.asked, client.due, client.told = client.asked - len(client.due), [], self.failure is not None
                messages.append((client, Message(content, client.node, "query", ttl=TTL_S)))
                under_way += 1
            brisk = client.asked == 0 or time.monotonic() - client.asked_at < BRISK_S
            for _ in range(under_way, MESSAGES if brisk else 0):
                messages.append((client, Message(pack_answers([]), client.node, "query", ttl=TTL_S)))
        if not messages:
            return
        numbers = list(self.grid.push_messages([message for _, message in messages]))
        for (client, _), number in zip(messages, numbers, strict=True):
            if number:
                self.sent[number] = client.node
            else:
                self._lose(client, "the SuperLink took no message for it")

    def _fetch(self, client: Client) -> None:
        """A thread for each client: pulling a reply that is cut off in the middle blocks for Flower's three minutes."""
        seen: set[str] = set()
        while client.outcome is None or client.node in self.sent.values():
            numbers = [number for number, node in list(self.sent.items()) if node == client.node and number not in seen]
            try:
                replies = list(self.grid.pull_messages(numbers)) if numbers else []
            except Exception as error:  # whatever it is, the run must end with it
                self.arrived.put((client, f"the SuperLink can't be asked for its replies: {error}"))
                return
            for reply in replies:
                seen.add(reply.metadata.reply_to_message_id)
                self.arrived.put((client, reply))
            if not replies:
                time.sleep(self.poll_s)

    def _take(self) -> None:
        """Look at what has arrived; waits a moment if nothing has."""
        try:
            client, reply = self.arrived.get(timeout=self.poll_s)
        except Empty:
            return
        if isinstance(reply, str):
            self._lose(client, reply)
        else:
            self._receive(reply)

    def _receive(self, message: Message) -> None:
        node = self.sent.pop(message.metadata.reply_to_message_id, None)
        if node is None or self.nodes[node].outcome is not None:
            return
        client = self.nodes[node]
        if message.has_error():
            self._lose(client, f"{message.error.reason}".strip())
            return
        try:
            island, clients, requests, outcome = unpack_requests(message.content)
        except PayloadError as error:
            if client.told:  # it was asked to end, and can't say that it has
                self._lose(client, str(error))
            self._fail(f"{client.name}: {error}")
            return
        try:
            if self.failure is None:
                self._introduce(client, island, clients)
                self._relay(client, island, requests)
        except TransportError as error:
            self._fail(f"{client.name}: {error}")
        if outcome is not None:
            client.outcome = outcome
            if outcome.code != 0:
                self._fail(f"{client.name} ended with exit code {outcome.code}: {outcome.error or 'stopped'}")

    def _relay(self, client: Client, island: int, requests: Sequence[Request]) -> None:
        for request in requests:
            client.asked, client.asked_at = client.asked + 1, time.monotonic()
            answers = self.relay.offer(island, request)
            for other in self.nodes.values():
                if other.island in answers:
                    other.due.append(answers[other.island])

    def _introduce(self, client: Client, island: int, clients: int) -> None:
        """Raises TransportError unless it is one of this run's clients, and the only one of its number."""
        taken = [c for c in self.nodes.values() if c.island == island and c is not client]
        if client.island not in (None, island) or taken or not 0 <= island < self.clients or clients != self.clients:
            raise TransportError(
                f"it says that it is client {island} of {clients}, in a run of {self.clients} clients"
                + (", as another node does" if taken else "")
                + ". Fix: give each client its own --client, 0 to one below --clients"
            )
        client.island = island

    def _look_for_leavers(self) -> None:
        online = set(self.grid.get_node_ids())
        for client in self.nodes.values():
            if client.outcome is None and client.node not in online:
                self._lose(client, "it has left, or its SuperNode is gone")

    def _lose(self, client: Client, cause: str) -> None:
        self.sent = {number: node for number, node in self.sent.items() if node != client.node}
        client.outcome = Outcome(code=1, error=cause)
        self._fail(f"{client.name} is lost: {cause}")

    def _fail(self, cause: str) -> None:
        self.failure = self.failure or cause
        for client in self.nodes.values():
            client.due.clear()


def write_outcome(path: Path, error: str | None, outcomes: Sequence[Outcome]) -> None:
    """For `lowcomm federation run`, which waits for it."""
    sha256, code = (outcomes[0].weights_sha256, outcomes[0].code) if outcomes else (None, 1)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps({"error": error, "code": code, "weights_sha256": sha256}), encoding="utf-8")
    partial.replace(path)


def make_server_app() -> ServerApp:
    """The ServerApp; its run config: clients, patience-s, and outcome, a file that it writes at the end."""
    from flwr.serverapp import ServerApp

    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        config = context.run_config
        outcome = Path(str(config["outcome"]))
        session = Session(grid, int(config["clients"]), float(config["patience-s"]))
        try:
            outcomes = session.run()
        except FederationError as error:
            write_outcome(outcome, str(error), [])
            raise
        write_outcome(outcome, None, outcomes)

    return app
