"""One run on the server: hands each client's exchanges to the relay and the answers back, until all clients have ended.

A client replies to a message when its trainer has posted something, or at once if it still waits for an answer. A
SuperNode handles one message at a time and sleeps for three seconds when it finds none, so a second, empty one is kept
waiting for it while its trainer computes and for BRISK_S of an exchange: without it each exchange would take a sleep.

A client is lost if it ends with an error, dies, leaves, or sends what can't be used. Where the clients exchange among
those present the others go on, and it may not come back. Else, and where an exchange needs it, the run fails, with the
client's number: the others are told, save what they have with the pseudo-gradient pending, and end. So it does when
none is left. Where one stops with everything saved the others do so, too, and the run ends as stopped if all have.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from lowcomm.federation.clients import Client, LostClient
from lowcomm.federation.mailbox import Failure, Outcome
from lowcomm.federation.packing import pack_answers, unpack_requests
from lowcomm.transport.relay import Answer, IslandError, Relay, Request
from lowcomm.types import LowcommError, PayloadError, TransportError

if TYPE_CHECKING:
    from flwr.app import Message
    from flwr.serverapp import Grid

STOPPED = 3
"""Exit code of a client that was stopped with everything saved; of the run if all clients were."""
POLL_S = 0.3
"""Flower shows a reply before its objects have come, and who asks for them too early waits for a second."""
REQUEST_S = 0.02
"""What one question for replies may cost: with many clients each is asked less often."""
BRISK_S = 2.0
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


class Session:
    """From the first message to the last."""

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
        self.failure: Failure | None = None

    def run(self) -> list[Outcome]:
        """To the end; outcomes of the clients that were not lost, in island order. Raises FederationError."""
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

    def lost(self) -> list[LostClient]:
        """The clients that were lost."""
        said = dict(pair for c in self.nodes.values() if c.outcome is not None for pair in c.outcome.lost)
        found = [(c.island, c.lost) for c in self.nodes.values() if c.island is not None and c.lost is not None]
        return [LostClient(client=k, round=said.get(k), cause=cause) for k, cause in sorted(found)]

    def _outcomes(self) -> list[Outcome]:
        ended = sorted(self.nodes.values(), key=lambda c: (c.island is None, c.island))
        left = [c.outcome for c in ended if c.outcome is not None and c.lost is None]
        if self.failure is None and len({outcome.weights_sha256 for outcome in left}) > 1:
            self.failure = Failure(cause="the clients ended with different global weights")
        if {c.outcome.code for c in ended if c.outcome is not None} == {STOPPED}:
            self.failure = None
        if self.failure is not None:
            raise FederationError(self.failure.cause)
        return left

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
            if under_way < MESSAGES and (client.due or (self.failure is not None and not client.notified)):
                content = pack_answers(client.due, self.failure, client.island)
                client.asked, client.due, client.notified = client.asked - len(client.due), [], self.failure is not None
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
            if client.notified or self.relay.goes_on:  # one that was asked to end can't say that it has
                self._lose(client, str(error))
            else:
                self._fail(f"{client.name}: {error}")
            return
        try:
            if self.failure is None:
                self._introduce(client, island, clients)
                self._relay(client, island, requests)
        except IslandError as error:
            self._lose(client, str(error)) if self.relay.goes_on else self._fail(f"{client.name}: {error}")
        except TransportError as error:
            self._fail(f"{client.name}: {error}")
        if outcome is not None and client.lost is None:
            self._end(client, outcome)

    def _end(self, client: Client, outcome: Outcome) -> None:
        why = f"ended with exit code {outcome.code}: {outcome.error or 'stopped'}"
        if outcome.code not in (0, STOPPED) and self.relay.goes_on and self.failure is None:
            self._lose(client, f"it {why}")
            return
        client.outcome = outcome
        if outcome.code != 0:
            self._fail(f"{client.name} {why}", stopped=outcome.code == STOPPED)

    def _relay(self, client: Client, island: int, requests: Sequence[Request]) -> None:
        for request in requests:
            client.asked, client.asked_at = client.asked + 1, time.monotonic()
            self._answer(self.relay.offer(island, request))
        self._need_lost()

    def _answer(self, answers: Mapping[int, Answer]) -> None:
        for client in self.nodes.values():
            if client.island is not None and client.island in answers:
                client.due.append(answers[client.island])

    def _introduce(self, client: Client, island: int, clients: int) -> None:
        """Raises IslandError unless it is one of this run's clients, and the only one of its number."""
        taken = [c for c in self.nodes.values() if c.island == island and c is not client]
        if client.island not in (None, island) or taken or not 0 <= island < self.clients or clients != self.clients:
            raise IslandError(
                f"it says that it is client {island} of {clients}, in a run of {self.clients} clients"
                + (", as another node does" if taken else "")
                + ". Fix: give each client its own --client, 0 to one below --clients"
            )
        client.island = island

    def _look_for_leavers(self) -> None:
        online = set(self.grid.get_node_ids())
        for client in self.nodes.values():
            there = client.node in online
            if client.outcome is None and not there:
                self._lose(client, "it has left, or its SuperNode is gone")
            elif client.lost is not None:
                if there and not client.notified:
                    self._turn_away(client)
                client.notified = there

    def _lose(self, client: Client, cause: str) -> None:
        cause = " ".join(cause.split()).rstrip(".")
        self.sent = {number: node for number, node in self.sent.items() if node != client.node}
        client.outcome, client.lost, client.notified = Outcome(code=1, error=cause), cause, False
        client.due.clear()
        if self.failure is None and self.relay.goes_on and client.island is not None:
            for answers in self.relay.lose(client.island, cause):
                self._answer(answers)
            self._need_lost()
            if all(c.lost is not None for c in self.nodes.values()):
                first = next(k for k in self.relay.lost)
                self._fail(f"all clients are lost, client {first} first: {self.relay.lost[first]}")
        else:
            self._fail(f"{client.name} is lost: {cause}")
        if self.failure is None:
            logging.getLogger("lowcomm").warning(f"{client.name} is lost, the others go on without it: {cause}")

    def _need_lost(self) -> None:
        """Fail if clients wait for one that is lost in an exchange of all."""
        waiting = self.relay.waits_for()
        if waiting is not None:
            number, island = waiting
            self._fail(f"client {island} is lost, and exchange {number} needs all: {self.relay.lost[island]}")

    def _turn_away(self, client: Client) -> None:
        from flwr.app import Message

        why = (
            f"{client.name} was lost to the run, which goes on without it, and may not come back ({client.lost}). "
            "Fix: let the run end, or stop it and start all clients with --resume auto"
        )
        self.grid.push_messages([Message(pack_answers([], Failure(cause=why)), client.node, "query", ttl=TTL_S)])

    def _fail(self, cause: str, stopped: bool = False) -> None:
        if self.failure is None and stopped:
            logging.getLogger("lowcomm").warning(f"{cause}. The others save and stop, too")
        self.failure = self.failure or Failure(
            cause=cause, stopped=stopped
        )  # answers that are due still go out: what is complete is so for all
