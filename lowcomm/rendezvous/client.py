"""Asks the rendezvous of a run for keys and values, over one connection that both sides have proven."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence

from lowcomm.rendezvous.frames import LENGTH_BYTES, MAGIC, NONCE_BYTES, TAG_BYTES, Seal, check_length, proof, same
from lowcomm.rendezvous.server import PROVE_S, keep_open
from lowcomm.types import PayloadError, TransportError

REPLY_S = 60.0
"""Longest time to an answer, beside what a request asks to be waited for."""
SLICE_S = 0.5
"""Longest wait in one request: other threads use the same connection."""
PAUSE_S = 0.5
"""Between two attempts to connect."""
MOST_REFUSALS = 10
"""Attempts that reach somebody who does not know the secret; a full node 0 may close one or another."""


class RendezvousError(TransportError, RuntimeError):
    """The rendezvous can not be asked, or has no answer in time. torch expects a RuntimeError of a store."""


class RefusedError(RendezvousError):
    """Somebody answers there, and does not know the run's secret."""


class KeyClient:
    """Keys and values at `address`. Every request may raise RendezvousError; threads may share it."""

    def __init__(self, address: str, port: int, secret: bytes) -> None:
        self.address, self._port, self._secret = address, port, secret
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._going = self._coming = Seal(b"", b"")

    def connect(self, timeout_s: float, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Wait for node 0. False: `stopped` said so first. Raises RendezvousError, RefusedError after some attempts."""
        deadline, refusals = time.monotonic() + timeout_s, 0
        while not stopped():
            try:
                with self._lock:
                    if self._connection is None:
                        self._open()
                return True
            except RefusedError:
                refusals += 1
                if refusals >= MOST_REFUSALS or time.monotonic() > deadline:
                    raise
            except OSError as error:
                if time.monotonic() > deadline:
                    raise RendezvousError(self._lost(f"did not answer in {timeout_s:.0f} s ({error})")) from error
            time.sleep(PAUSE_S)
        return False

    def close(self) -> None:
        """Leave; safe to call twice."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def set(self, key: str, value: bytes) -> None:
        self._ask(b"set", key.encode(), value)

    def get(self, key: str, timeout_s: float) -> bytes:
        """Wait for a value. Raises RendezvousError if there is none in time."""
        deadline = time.monotonic() + timeout_s
        while True:
            wait_s = min(SLICE_S, deadline - time.monotonic())
            answer = self._ask(b"get", b"%d" % max(0, int(1e3 * wait_s)), key.encode())
            if answer:
                return answer[0]
            if time.monotonic() >= deadline:
                raise RendezvousError(self._lost(f"has had no {key!r} for {timeout_s:.0f} s"))

    def wait(self, keys: Sequence[str], timeout_s: float) -> bool:
        """Whether all keys were there in time."""
        deadline = time.monotonic() + timeout_s
        while True:
            wait_s = min(SLICE_S, deadline - time.monotonic())
            if self._number(b"wait", b"%d" % max(0, int(1e3 * wait_s)), *(key.encode() for key in keys)):
                return True
            if time.monotonic() >= deadline:
                return False

    def add(self, key: str, amount: int) -> int:
        """The sum after it."""
        return self._number(b"add", key.encode(), b"%d" % amount)

    def swap(self, key: str, expected: bytes, desired: bytes) -> bytes:
        """What is there then: `desired` if `expected` was (empty: nothing was)."""
        return self._ask(b"swap", key.encode(), expected, desired)[0]

    def delete(self, key: str) -> bool:
        """Whether it was there."""
        return bool(self._number(b"delete", key.encode()))

    def count(self) -> int:
        """How many keys there are."""
        return self._number(b"count")

    def _number(self, *fields: bytes) -> int:
        return int(self._ask(*fields)[0])

    def _ask(self, *fields: bytes) -> list[bytes]:
        with self._lock:
            try:
                if self._connection is None:
                    self._open()
                assert self._connection is not None
                self._connection.sendall(self._going.seal(fields))
                length = int.from_bytes(self._read(LENGTH_BYTES), "big")
                check_length(length)
                body = self._read(length)
                return self._coming.open(body, self._read(TAG_BYTES))
            except (OSError, PayloadError) as error:
                self.close()
                raise RendezvousError(self._lost(f"is lost ({error})")) from error

    def _open(self) -> None:
        """Raises OSError or RefusedError."""
        connection = socket.create_connection((self.address, self._port), timeout=PROVE_S)
        with contextlib.ExitStack() as stack:
            stack.callback(connection.close)
            self._connection = connection
            try:
                hello = self._read(len(MAGIC) + NONCE_BYTES)
                theirs, ours = hello[len(MAGIC) :], os.urandom(NONCE_BYTES)
                if hello[: len(MAGIC)] != MAGIC:
                    raise ConnectionError("another program")
                connection.sendall(ours + proof(self._secret, b"client", theirs, ours))
                if not same(self._read(TAG_BYTES), proof(self._secret, b"server", theirs, ours)):
                    raise ConnectionError("a wrong proof")
            except ConnectionError as error:
                raise RefusedError(
                    self._lost("does not know this run's secret, or is another program")
                    + ". Fix: give all nodes the same secret, and a port that nothing else uses"
                ) from error
            finally:
                self._connection = None
            stack.pop_all()
        keep_open(connection)
        connection.settimeout(REPLY_S)
        key = proof(self._secret, b"session", theirs, ours)
        self._going, self._coming = Seal(key, b"to server"), Seal(key, b"to client")
        self._connection = connection

    def _read(self, count: int) -> bytes:
        """Raises OSError; the end of the connection is one."""
        assert self._connection is not None
        parts = bytearray()
        while len(parts) < count:
            part = self._connection.recv(min(count - len(parts), 1 << 16))
            if not part:
                raise ConnectionResetError("it was closed")
            parts += part
        return bytes(parts)

    def _lost(self, what: str) -> str:
        return f"the rendezvous at {self.address}:{self._port} {what}"
