"""Serves keys and values to the processes of one run, on one address of node 0, in a thread of its own.

Who connects proves within `PROVE_S` that it knows the run's secret, and has sent at most `LOGIN_BYTES` until then; of
those who have not yet, the newest `MOST_STRANGERS` are kept. Values are bytes that nobody interprets.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from types import TracebackType

from lowcomm.rendezvous.frames import LENGTH_BYTES, MAGIC, NONCE_BYTES, TAG_BYTES, Seal, check_length, proof, same
from lowcomm.types import PayloadError

PROVE_S = 10.0
MOST_STRANGERS = 64
LOGIN_BYTES = NONCE_BYTES + TAG_BYTES
MOST_WAIT_S = 5.0
"""Of one request; a client asks again."""
CLOSED = (OSError, EOFError, asyncio.TimeoutError, PayloadError, ValueError, asyncio.CancelledError)
"""What ends one connection and nothing else; the last comes with the end of the server."""


class KeyServer:
    """`with KeyServer(address, port, secret):` serves. Raises OSError if it can not listen there."""

    def __init__(self, address: str, port: int, secret: bytes) -> None:
        self._secret = secret
        self._values: dict[str, bytes] = {}
        self._strangers: dict[asyncio.StreamWriter, None] = {}  # in the order in which they came
        self._members: set[asyncio.StreamWriter] = set()
        self._alone = threading.Event()
        self._alone.set()
        self._socket = socket.create_server((address, port), backlog=1024)
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self._loop = asyncio.new_event_loop()
        self._changed, self._closing = asyncio.Condition(), asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="rendezvous", daemon=True)
        self._thread.start()

    def __enter__(self) -> KeyServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def wait_until_alone(self, timeout_s: float) -> None:
        """Until no process of the run is connected, or the time is over."""
        self._alone.wait(timeout_s)

    def close(self) -> None:
        """Close all connections and the port; safe to call twice."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._listen())

    async def _listen(self) -> None:
        server = await asyncio.start_server(self._serve, sock=self._socket)
        await self._closing.wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # connections close in the next turn

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(*CLOSED):  # it has gone, as all do in the end
                keep_open(writer.get_extra_info("socket"))
                seals = await self._login(reader, writer)
                if seals is not None:
                    self._members.add(writer)
                    self._alone.clear()
                    await self._answer(reader, writer, *seals)
        finally:
            self._strangers.pop(writer, None)
            self._members.discard(writer)
            if not self._members:
                self._alone.set()
            writer.transport.abort()

    async def _login(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[Seal, Seal] | None:
        """Seals for what comes and what goes; None for a stranger, who is told nothing."""
        self._strangers[writer] = None
        if len(self._strangers) > MOST_STRANGERS:
            next(iter(self._strangers)).transport.abort()
        nonce = os.urandom(NONCE_BYTES)
        writer.write(MAGIC + nonce)
        came = await asyncio.wait_for(reader.readexactly(LOGIN_BYTES), PROVE_S)
        theirs, proven = came[:NONCE_BYTES], came[NONCE_BYTES:]
        if not same(proven, proof(self._secret, b"client", nonce, theirs)):
            return None
        writer.write(proof(self._secret, b"server", nonce, theirs))
        await writer.drain()
        del self._strangers[writer]
        key = proof(self._secret, b"session", nonce, theirs)
        return Seal(key, b"to server"), Seal(key, b"to client")

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, coming: Seal, going: Seal
    ) -> None:
        while True:
            length = int.from_bytes(await reader.readexactly(LENGTH_BYTES), "big")
            check_length(length)
            body = await reader.readexactly(length)
            what, *fields = coming.open(body, await reader.readexactly(TAG_BYTES))
            writer.write(going.seal(await self._do(what, fields)))
            await writer.drain()

    async def _do(self, what: bytes, fields: list[bytes]) -> list[bytes]:
        """Raises ValueError or PayloadError for a request that is none."""
        values = self._values
        match what, fields:
            case b"wait", [wait_ms, *keys]:
                return [b"1" if await self._wait(int(wait_ms), [k.decode() for k in keys]) else b"0"]
            case b"get", [wait_ms, key]:
                found = await self._wait(int(wait_ms), [name := key.decode()])
                return [values[name]] if found else []
            case b"add", [key, amount]:
                total = int(values.get(name := key.decode(), b"0")) + int(amount)
                await self._set(name, b"%d" % total)
                return [b"%d" % total]
            case b"set", [key, value]:
                await self._set(key.decode(), value)
                return []
            case b"swap", [key, expected, desired]:
                return [await self._swap(key.decode(), expected, desired)]
            case b"delete", [key]:
                return [b"0" if values.pop(key.decode(), None) is None else b"1"]
            case b"count", []:
                return [b"%d" % len(values)]
            case _:
                raise PayloadError(f"the rendezvous does not know {what!r} with {len(fields)} fields")

    async def _wait(self, wait_ms: int, keys: list[str]) -> bool:
        def there() -> bool:
            return all(key in self._values for key in keys)

        if not there() and wait_ms > 0:
            with contextlib.suppress(asyncio.TimeoutError):
                async with self._changed:
                    await asyncio.wait_for(self._changed.wait_for(there), min(wait_ms / 1e3, MOST_WAIT_S))
        return there()

    async def _set(self, key: str, value: bytes) -> None:
        async with self._changed:
            self._values[key] = value
            self._changed.notify_all()

    async def _swap(self, key: str, expected: bytes, desired: bytes) -> bytes:
        """As torch's stores do: an empty value is expected of a key that is not there. Returns what is there then."""
        current = self._values.get(key)
        if current == expected or (current is None and not expected):
            await self._set(key, desired)
            return desired
        return expected if current is None else current


def keep_open(connection: socket.socket) -> None:
    """Have the system send a sign of life every 25 s, which holds NAT open as a tunnel's does, and no small waits."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 25)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 25)
