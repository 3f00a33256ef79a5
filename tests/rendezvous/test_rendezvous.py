"""The rendezvous of several machines: keys and values for those who know the run's secret, nothing for others."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from lowcomm.membership import open_store
from lowcomm.rendezvous import client as client_module
from lowcomm.rendezvous import server as server_module
from lowcomm.rendezvous.client import KeyClient, RefusedError, RendezvousError
from lowcomm.rendezvous.frames import MAGIC, MOST_BYTES, NONCE_BYTES, Seal, check_secret, pack, proof, unpack
from lowcomm.rendezvous.nodes import Node, address_of, listening_address, meet, rendezvous, take_secret, write_meeting
from lowcomm.rendezvous.server import KeyServer
from lowcomm.rendezvous.store import RunStore
from lowcomm.run import node as node_module
from lowcomm.run.ranks import Ended
from lowcomm.types import ConfigError, PayloadError
from tests.support.intruder import KEY, overwrite

SECRET = b"what all nodes of a run have in common".replace(b" ", b"-")
HOST = "127.0.0.1"


@pytest.fixture
def server() -> Iterator[KeyServer]:
    with KeyServer(HOST, 0, SECRET) as made:
        yield made


@pytest.fixture
def client(server: KeyServer) -> Iterator[KeyClient]:
    with contextlib.closing(KeyClient(*server.address, SECRET)) as made:
        yield made


def test_a_store_of_torch_can_be_overwritten_and_this_one_not(server: KeyServer, client: KeyClient) -> None:
    """The reproduction of what once ran a shell command: it works where torch listens, and here nothing was changed."""
    client.set(KEY, b"ours")
    torchs = dist.TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    assert overwrite(HOST, torchs.port) == "overwritten"
    assert overwrite(*server.address) == "closed"
    with pytest.raises(dist.DistNetworkError):
        dist.TCPStore(*server.address, is_master=False, timeout=timedelta(seconds=1)).set(KEY, "theirs")
    assert (client.get(KEY, 1.0), client.count()) == (b"ours", 1)


OPERATION = st.tuples(
    st.sampled_from(["set", "add", "compare_set", "check", "delete_key", "num_keys", "get"]),
    st.sampled_from(["a", "b/c", "é"]),
    st.sampled_from(["", "x", "1"]),
)


@settings(max_examples=40)
@given(st.lists(OPERATION, max_size=12))
def test_it_answers_as_the_stores_of_torch_do(operations: list[tuple[str, str, str]]) -> None:
    """Through a PrefixStore, as process groups use it: the calls come from C++."""
    with KeyServer(HOST, 0, SECRET) as server, contextlib.closing(KeyClient(*server.address, SECRET)) as client:
        ours, torchs = RunStore(client, 0.0), dist.HashStore()
        torchs.set_timeout(timedelta(milliseconds=1))
        pair = [dist.PrefixStore("group", ours), dist.PrefixStore("group", torchs)]
        for what, key, value in operations:
            if what == "add":
                if not torchs.check([f"group/{key}"]):
                    assert [s.add(f"{key}-sum", len(value)) for s in pair] == [s.add(f"{key}-sum", 0) for s in pair]
            elif what == "compare_set":
                assert len({s.compare_set(key, value, "new") for s in pair}) == 1
            elif what == "set":
                for store in pair:
                    store.set(key, value)
            elif what == "get":
                if pair[1].check([key]):
                    assert pair[0].get(key) == pair[1].get(key)
                else:
                    with pytest.raises(RuntimeError, match="has had no 'group/"):
                        pair[0].get(key)
            elif what == "num_keys":
                assert pair[0].num_keys() == pair[1].num_keys()
            else:
                assert len({s.check([key]) if what == "check" else s.delete_key(key) for s in pair}) == 1


def test_a_value_is_waited_for(server: KeyServer, client: KeyClient) -> None:
    store = RunStore(client, 60.0)
    with contextlib.closing(KeyClient(*server.address, SECRET)) as other:
        waiting = threading.Thread(target=lambda: (store.wait(["a", "b"]), store.set("c", "after")))
        waiting.start()
        other.set("b", b"")
        assert not other.wait(["c"], 0.0)
        store.add("a", 1)  # by the connection on which a thread waits
        assert other.get("c", 60.0) == b"after"
        waiting.join()
    with pytest.raises(RuntimeError, match=r"has had not all of \['never'\] for 0 s"):
        store.wait(["never"], timedelta(milliseconds=1))


def test_who_does_not_know_the_secret_is_refused(server: KeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "PAUSE_S", 0.0)
    with pytest.raises(RefusedError, match="does not know this run's secret, or is another program"):
        KeyClient(*server.address, SECRET + b"x").connect(60.0)


def answer(hello: bytes, listener: socket.socket) -> None:
    """As a program that listens where node 0 should."""
    for _ in range(client_module.MOST_REFUSALS):
        connection, _ = listener.accept()
        with connection:
            connection.sendall(hello)
            with contextlib.suppress(OSError):
                connection.recv(1 << 10)


@pytest.mark.parametrize("hello", [MAGIC + bytes(NONCE_BYTES) + bytes(32), b"SSH-2.0-OpenSSH_9.6\r\n" * 4])
def test_a_false_node_0_is_refused(hello: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "PAUSE_S", 0.0)
    with socket.create_server((HOST, 0)) as listener:
        false = threading.Thread(target=answer, args=(hello, listener))
        false.start()
        with pytest.raises(RefusedError):
            KeyClient(HOST, listener.getsockname()[1], SECRET).connect(60.0)
        false.join()


def logged_in(server: KeyServer) -> tuple[socket.socket, Seal, bytes]:
    """A connection by hand, its seal, and what the client has sent to open it."""
    connection = socket.create_connection(server.address, timeout=10)
    hello = connection.recv(len(MAGIC) + NONCE_BYTES, socket.MSG_WAITALL)
    theirs, ours = hello[len(MAGIC) :], os.urandom(NONCE_BYTES)
    login = ours + proof(SECRET, b"client", theirs, ours)
    connection.sendall(login)
    assert connection.recv(32, socket.MSG_WAITALL) == proof(SECRET, b"server", theirs, ours)
    return connection, Seal(proof(SECRET, b"session", theirs, ours), b"to server"), login


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_what_was_heard_can_not_be_said_again(server: KeyServer, client: KeyClient) -> None:
    """Neither the proof on another connection, nor a frame on the same, nor one changed by a bit."""
    connection, seal, login = logged_in(server)
    frame = seal.seal([b"add", b"n", b"1"])
    with connection:
        connection.sendall(frame)
        assert connection.recv(1 << 10)
        connection.sendall(frame)
        assert is_closed(connection)
    with socket.create_connection(server.address, timeout=10) as again:
        again.recv(len(MAGIC) + NONCE_BYTES, socket.MSG_WAITALL)
        again.sendall(login)
        assert is_closed(again)
    for at in (5, -1):
        connection, seal, _ = logged_in(server)
        with connection:
            changed = bytearray(seal.seal([b"add", b"n", b"1"]))
            changed[at] ^= 1
            connection.sendall(changed)
            assert is_closed(connection)
    assert client.add("n", 0) == 1


@pytest.mark.parametrize(
    "body",
    [
        (MOST_BYTES + 1).to_bytes(4, "big"),
        b"\xff\xff\xff\xff",
        [],
        [b"wait"],
        [b"eval", b"1"],
        [b"add", b"n", b"x"],
        [b"set", b"\xff", b""],
    ],
)
def test_a_bad_request_ends_its_own_connection_only(
    body: bytes | list[bytes], server: KeyServer, client: KeyClient
) -> None:
    connection, seal, _ = logged_in(server)
    with connection:
        connection.sendall(body if isinstance(body, bytes) else seal.seal(body))
        assert is_closed(connection)
    assert client.count() == 0


def test_strangers_can_not_keep_others_out(server: KeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who say nothing make room, the oldest first."""
    monkeypatch.setattr(server_module, "MOST_STRANGERS", 4)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(server.address, timeout=10)) for _ in range(5)]
        assert silent[-1].recv(len(MAGIC) + NONCE_BYTES, socket.MSG_WAITALL).startswith(MAGIC)
        silent[0].recv(len(MAGIC) + NONCE_BYTES, socket.MSG_WAITALL)
        assert is_closed(silent[0])
        with contextlib.closing(KeyClient(*server.address, SECRET)) as client:
            assert client.add("n", 1) == 1


def test_a_client_says_that_node_0_is_gone(server: KeyServer, client: KeyClient) -> None:
    client.set("a", b"")
    server.wait_until_alone(0.0)
    server.close()
    for _ in range(2):  # lost, then nobody there
        with pytest.raises(RendezvousError, match=rf"the rendezvous at {HOST}:{server.address[1]} is lost"):
            client.get("a", 1.0)


@given(st.lists(st.binary(max_size=40), max_size=5), st.integers(0, 300))
def test_fields_are_what_they_were(fields: list[bytes], cut: int) -> None:
    body = pack(fields)
    assert unpack(body) == fields
    with contextlib.suppress(PayloadError):
        assert pack(unpack(body[:cut])) == body[:cut]


def test_a_frame_has_a_bound() -> None:
    with pytest.raises(PayloadError, match="at most 8388608"):
        Seal(b"key", b"").seal([bytes(MOST_BYTES)])


@pytest.mark.parametrize("text", ["", "short", "x" * 31, "é" * 40, "x" * 20 + " " + "y" * 20])
def test_a_weak_secret_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWCOMM_SECRET", text)
    with pytest.raises(ConfigError, match=r"the run's secret in LOWCOMM_SECRET is not allowed: .* 32 ASCII") as caught:
        take_secret()
    assert not text or text not in str(caught.value)
    assert "LOWCOMM_SECRET" not in os.environ, "the ranks' own children would have it"
    assert check_secret(f" {SECRET.decode()}\n", "") == SECRET


def a_node(index: int, port: int, nodes: int = 3, ranks: int = 1) -> Node:
    return Node(index=index, nodes=nodes, ranks=ranks, master=HOST, port=port, address=None)


def test_nodes_of_unequal_size_count_their_ranks(server: KeyServer) -> None:
    found: dict[int, tuple[int, int]] = {}

    def come(index: int) -> None:
        with contextlib.closing(KeyClient(*server.address, SECRET)) as client:
            place = meet(client, a_node(index, 0, ranks=(4, 1, 2)[index]), lambda: False, 60.0)
            assert place is not None
            found[index] = (place.first_rank, place.ranks)

    threads = [threading.Thread(target=come, args=(index,)) for index in (2, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: (0, 7), 1: (4, 7), 2: (5, 7)}


def test_nodes_that_do_not_fit_together(client: KeyClient) -> None:
    assert meet(client, a_node(0, 0, nodes=1), lambda: False) is not None
    with pytest.raises(ConfigError, match="--node-rank = 0 is not allowed: another one for each node"):
        meet(client, a_node(0, 0, nodes=1), lambda: False)
    with pytest.raises(ConfigError, match="--nodes = 2 is not allowed: 1, as on node 0"):
        meet(client, a_node(1, 0, nodes=2), lambda: False)
    with pytest.raises(RendezvousError, match=r"node 3 has not come in 0 s\. Fix: start every node, from 0 to 3"):
        client.delete("lowcomm/node/0")
        for index in (0, 1, 2):
            client.set(f"lowcomm/node/{index}", b"[4, 1]")
        client.delete("lowcomm/came/0")
        meet(client, a_node(0, 0, nodes=4), lambda: False, 0.0)
    client.delete("lowcomm/came/0")
    assert meet(client, a_node(0, 0, nodes=4), lambda: True) is None, "a signal came first"


def test_node_0_listens_on_one_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with rendezvous(a_node(0, 0), SECRET):
        pass
    with socket.create_server((HOST, 0)) as taken:
        node = a_node(0, taken.getsockname()[1])
        with pytest.raises(ConfigError, match=r"--port = \d+ is not allowed: a port of 127\.0\.0\.1 that is free"):
            with rendezvous(node, SECRET):
                pass
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [(0, 0, 0, "", ("127.0.1.1", 0))])
    named = Node(index=0, nodes=2, ranks=1, master="head", port=1, address="10.0.0.7")
    assert listening_address(named) == "10.0.0.7", "a name that means this host on itself only"
    assert address_of("lo") == HOST
    with pytest.raises(ConfigError, match="GLOO_SOCKET_IFNAME = 'none9' has no IPv4 address"):
        address_of("none9")


def test_ranks_read_where_to_meet_in_a_private_file(server: KeyServer, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    path = write_meeting(tmp_path, *server.address, SECRET)
    assert path.stat().st_mode & 0o777 == 0o600
    store = open_store(path, 5.0)
    assert isinstance(store, RunStore) and store.add("n", 2) == 2
    store.close()
    path.write_text('{"host": "x"}')
    with pytest.raises(ConfigError, match="is no rendezvous of a run"):
        open_store(path, 5.0)
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigError, match="a file in a directory of this user with mode 0700"):
        open_store(path, 5.0)


OPTIONS = ("--nodes", "2", "--node-rank", "1", "--ranks", "1", "--master", HOST, "--port", "29500", "--", "train", "x")


@pytest.mark.parametrize(
    ("outcome", "code", "said"),
    [
        (Ended(failed={}, codes={1: 0}, signal=None), 0, ""),
        (Ended(failed={}, codes={}, signal=15), 3, ""),
        (Ended(failed={1: -9}, codes={1: -9}, signal=None), 1, "rank 1 of"),
        (RefusedError("another secret"), 2, "lowcomm: error: another secret"),
        (ConfigError("bad"), 2, "lowcomm: error: bad"),
        (RendezvousError("nobody"), 1, "lowcomm: error: nobody"),
    ],
)
def test_one_exit_code_of_a_node(
    outcome: Ended | Exception,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(node: Node, secret: bytes, arguments: list[str]) -> Ended:
        assert (node.index, node.address, secret, arguments) == (1, None, SECRET, ["train", "x"])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setenv("LOWCOMM_SECRET", SECRET.decode())
    monkeypatch.setattr(node_module, "run_node", run)
    assert node_module.main(list(OPTIONS)) == code
    assert said in capsys.readouterr().err
