"""A federation over Flower: messages, the server's session, keys, bad input, and SuperLink with SuperNodes for real."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowcomm import checkpoint
from lowcomm.cli import main
from lowcomm.federation.mailbox import Mailbox, Outcome
from lowcomm.transport.relay import KINDS, Answer, Request
from lowcomm.transport.relayed import Relayed
from lowcomm.types import PayloadError, StoppedError, SyncError, TransportError
from tests.launch.test_launch import is_refusal, launch
from tests.support.runs import ROOT, run_islands, summary, write_corpus
from tests.support.tls import serving

if TYPE_CHECKING:
    from flwr.app import Message

MISSING = None if find_spec("flwr") else "flwr is not installed: pip install 'lowcomm[flower]'"
pytestmark = pytest.mark.filterwarnings("ignore:'click:DeprecationWarning")  # the typer that flwr asks for
Job = Callable[[Relayed], str | None]
"""What a client does; gives the digest of its weights."""
needs_flower = pytest.mark.skipif(MISSING is not None, reason=MISSING or "")


# messages

rows = st.lists(st.binary(max_size=40), max_size=4).map(
    lambda parts: tuple(
        torch.frombuffer(bytearray(p), dtype=torch.uint8) if p else torch.empty(0, dtype=torch.uint8) for p in parts
    )
)
requests = st.builds(
    Request,
    number=st.integers(0, 1000),
    kind=st.sampled_from(KINDS),
    rows=rows,
    weights=st.lists(st.floats(0, 1), max_size=4).map(tuple),
    present=st.booleans(),
)
pairs = st.lists(st.tuples(st.integers(0, 1023), st.integers(0, 10**6)), max_size=3).map(tuple)
outcomes = st.builds(Outcome, code=st.integers(0, 255), lost=pairs)


def same(a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@needs_flower
@settings(max_examples=50, deadline=None)
@given(given_requests=st.lists(requests, max_size=3), outcome=st.none() | outcomes)
def test_requests_come_back_as_they_were(given_requests: list[Request], outcome: Outcome | None) -> None:
    from lowcomm.federation.packing import pack_requests, unpack_requests

    client, clients, found, end = unpack_requests(pack_requests(2, 3, given_requests, outcome))
    assert (client, clients, end) == (2, 3, outcome)
    for a, b in zip(found, given_requests, strict=True):
        assert (a.number, a.kind, a.weights, a.present) == (b.number, b.kind, b.weights, b.present)
        assert same(a.rows, b.rows)


@needs_flower
@pytest.mark.parametrize("size_bytes", [0, 1 << 16, (1 << 16) + 1, 11 << 20])
def test_large_rows_travel_in_pieces(size_bytes: int) -> None:
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

    from lowcomm.federation.packing import pack_answers, unpack_answers

    row = torch.arange(size_bytes, dtype=torch.int64).to(torch.uint8)
    content = pack_answers([Answer(number=7, rows=(row, row[:3]))])
    objects = [len(part.deflate()) for part in get_all_nested_objects(content).values()]
    assert max(objects) < 5 * 1024 * 1024 + 1024
    answers, failure = unpack_answers(content)
    assert failure is None
    assert same(answers[0].rows, (row, row[:3]))


@needs_flower
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_mangled_message_is_a_payload_error(data: st.DataObject) -> None:
    from flwr.app import ConfigRecord, RecordDict

    from lowcomm.federation.packing import pack_requests, unpack_requests

    request = Request(number=1, kind="sum", weights=(0.5, 0.5), rows=(torch.zeros(8, dtype=torch.uint8),))
    record = pack_requests(0, 2, [request]).config_records["header"]
    text, carried = str(record["json"]), record["rows"]
    assert isinstance(carried, bytes)
    header = json.loads(text)
    values = st.sampled_from([None, -1, 2**63, 1.5, "x", [], [-8, 16], [4], {}, True, [8.0]])
    where = data.draw(st.sampled_from(["cut", "rows", *header, "number", "kind", "weights", "present"]))
    if where == "cut":
        text = text[: data.draw(st.integers(0, len(text) - 1))]
    elif where == "rows":
        carried = carried[: data.draw(st.integers(0, 7))]
    else:
        target = header if where in header else header["requests"][0]
        target[where] = data.draw(values.filter(lambda v: v != target[where] and (where, v) != ("outcome", None)))
        text = json.dumps(header)
    try:
        client, clients, found, _ = unpack_requests(
            RecordDict({"header": ConfigRecord({"json": text, "rows": carried})})
        )
    except PayloadError:
        return
    assert where in ("client", "clients", "number", "weights", "present", "requests"), (where, text)
    assert all(isinstance(n, int) for n in (client, clients))
    assert all(sum(r.numel() for r in q.rows) <= 8 for q in found)


# the mailbox


def test_an_answer_that_does_not_come_is_an_error_in_time() -> None:
    waiting = Mailbox(timeout_s=0.05).post(Request(number=0, kind="gather", rows=()))
    with pytest.raises(TransportError, match=r"not answered within sync.timeout_s = 0.05 s.*Nothing was committed"):
        waiting()


def test_messages_of_one_run_only() -> None:
    mailbox = Mailbox(1.0)
    mailbox.enter(3)
    mailbox.enter(3)
    with pytest.raises(TransportError, match="of the federation's run 4, this client is in run 3"):
        mailbox.enter(4)


@needs_flower
def test_answers_for_another_client_are_refused() -> None:
    from lowcomm.federation.packing import pack_answers, unpack_answers

    content = pack_answers([Answer(number=0, rows=())], None, 1)
    assert len(unpack_answers(content, 1)[0]) == 1
    with pytest.raises(PayloadError, match="answers for client 1, this is client 0"):
        unpack_answers(content, 0)


def test_an_answer_that_nobody_asked_for_is_refused() -> None:
    with pytest.raises(TransportError, match="exchange 3 came, which nobody waits for"):
        Mailbox(timeout_s=1.0).deliver([Answer(number=3, rows=())])


# the server's session, with clients as threads and no network


class Loopback:
    """A Grid whose nodes are ClientApps in threads: one message at a time and in order, as a SuperNode handles them."""

    def __init__(self, jobs: list[Job], numbers: list[int] | None = None, timeout_s: float = 20) -> None:
        from flwr.supercore.task_identity import TaskIdentity

        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # as flwr does in an app's process
        self.lock = threading.Condition()
        self.inbox: dict[int, list[Message]] = {}
        self.replies: dict[str, Message] = {}
        self.gone: set[int] = set()
        self.errors: dict[int, BaseException] = {}
        self.messages = 0
        self.receivers: dict[str, int] = {}
        self.torn = False
        for k, job in enumerate(jobs):
            self.start(100 + k, job, (numbers or list(range(len(jobs))))[k], len(jobs), timeout_s)

    def start(self, node: int, job: Job, me: int, clients: int, timeout_s: float = 20) -> None:
        from lowcomm.federation.worker import make_client_app

        with self.lock:
            self.inbox[node] = []
            self.gone.discard(node)
        mailbox = Mailbox(timeout_s)
        app = make_client_app(mailbox, me, clients)
        transport = Relayed(clients, me, mailbox.post)
        threading.Thread(target=self.train, args=(node, job, transport, mailbox), daemon=True).start()
        threading.Thread(target=self.serve, args=(node, app), daemon=True).start()

    def train(self, node: int, job: Job, transport: Relayed, mailbox: Mailbox) -> None:
        try:
            outcome = Outcome(code=0, weights_sha256=job(transport) or "same")
        except KeyboardInterrupt:
            outcome = Outcome(code=3, weights_sha256="same", error="it was stopped")
        except StoppedError as error:
            self.errors[node] = error
            outcome = Outcome(code=3, weights_sha256="same", error="it was stopped")
        except SystemExit:
            with self.lock:
                self.gone.add(node)  # killed: nothing more is heard of it
            return
        except Exception as error:
            self.errors[node] = error
            outcome = Outcome(code=1, error=str(error))
        mailbox.finish(outcome)

    def serve(self, node: int, app: Any) -> None:
        from flwr.app import Context, RecordDict

        context = Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})
        while node not in self.gone:
            with self.lock:
                if not self.lock.wait_for(lambda: self.inbox[node] or node in self.gone, timeout=30):
                    return
                if node in self.gone:
                    return
                message = self.inbox[node].pop(0)
            reply = app(message, context)
            with self.lock:
                if node not in self.gone:
                    self.replies[message.metadata.message_id] = reply

    def get_node_ids(self) -> list[int]:
        return [node for node in self.inbox if node not in self.gone]

    def push_messages(self, messages: list[Message]) -> list[str]:
        with self.lock:
            for message in messages:
                self.messages += 1
                vars(message.metadata)["_message_id"] = str(self.messages)
                self.receivers[str(self.messages)] = message.metadata.dst_node_id
                self.inbox[message.metadata.dst_node_id].append(message)
            self.lock.notify_all()
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, numbers: list[str]) -> list[Message]:
        if self.torn and any(self.receivers[n] in self.gone for n in numbers):
            time.sleep(8)  # the rest of a reply that was cut off in the middle; three minutes in Flower
        with self.lock:
            return [self.replies.pop(n) for n in numbers if n in self.replies]


def session(jobs: list[Job], numbers: list[int] | None = None, patience_s: float = 5.0) -> tuple[Loopback, str | None]:
    """(the grid, why the run failed)."""
    from lowcomm.federation.session import FederationError, Session

    grid = Loopback(jobs, numbers)
    try:
        outcomes = Session(grid, len(jobs), patience_s).run()  # pyright: ignore[reportArgumentType]
    except FederationError as error:
        return grid, str(error)
    assert [o.code for o in outcomes] == [0] * len(jobs)
    return grid, None


def talk(transport: Relayed, exchanges: int = 6) -> None:
    for i in range(exchanges):
        me = transport.local[0]
        assert transport.gather([torch.tensor([i, me])]).tolist() == [[i, k] for k in range(transport.islands)]


def overlap(transport: Relayed) -> None:
    """Two swaps on their way, and a sum while they are: answers are fetched although the next request is not there."""
    rows = [[torch.full((3,), 10 * transport.local[0] + k, dtype=torch.uint8) for k in range(transport.islands)]]
    sizes = [[3] * transport.islands]
    first, second = transport.start_swap(rows, sizes), transport.start_swap(rows, sizes)
    out = torch.ones(transport.islands * 2)
    transport.weighted_sum([out], [1.0] * transport.islands, out)
    assert out.tolist() == [transport.islands] * len(out)
    for arrived in (first(), second()):
        assert [int(row[0]) for row in arrived[0]] == [10 * k + transport.local[0] for k in range(transport.islands)]


def dies(transport: Relayed) -> None:
    talk(transport, 2)
    raise SystemExit


def fails(transport: Relayed) -> None:
    talk(transport, 2)
    raise ValueError("the loss is NaN")


@needs_flower
@pytest.mark.parametrize("job", [talk, overlap])
def test_clients_talk_through_the_server(job: Job) -> None:
    grid, failure = session([job] * 3)
    assert failure is None
    assert not grid.errors


@needs_flower
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (dies, "client 1 is lost: it has left, or its SuperNode is gone"),
        (fails, "client 1 ended with exit code 1: the loss is NaN"),
        (lambda t: t.broadcast([torch.zeros(3)]), "client .: islands . and . disagree on exchange 0"),
    ],
)
def test_a_client_that_fails_is_named_and_the_others_are_told(bad: Job, message: str) -> None:
    import re

    grid, failure = session([talk, bad, talk])
    assert failure is not None
    assert re.search(message, failure)
    for node in (100, 102):
        assert isinstance(grid.errors[node], SyncError)
        assert "Nothing was committed" in str(grid.errors[node])


@needs_flower
def test_a_reply_that_is_cut_off_in_the_middle_holds_nobody_up() -> None:
    from lowcomm.federation.session import FederationError, Session

    grid = Loopback([talk, dies, talk])
    grid.torn = True
    start = time.monotonic()
    with pytest.raises(FederationError, match="client 1 is lost: it has left"):
        Session(grid, 3, 5.0).run()  # pyright: ignore[reportArgumentType]
    assert time.monotonic() - start < 6
    assert grid.errors.keys() == {100, 102}


@needs_flower
def test_when_all_clients_fail_the_run_fails() -> None:
    def fail(transport: Relayed) -> None:
        raise ValueError("no data")

    _, failure = session([fail] * 3)
    assert failure is not None
    assert "ended with exit code 1: no data" in failure


@needs_flower
def test_when_all_clients_were_stopped_so_was_the_run(tmp_path: Path) -> None:
    from lowcomm.federation.server import write_outcome
    from lowcomm.federation.session import Session

    def stop(transport: Relayed) -> str:
        talk(transport)
        raise KeyboardInterrupt

    outcomes = Session(Loopback([stop] * 2), 2, 5.0).run()  # pyright: ignore[reportArgumentType]
    write_outcome(tmp_path / "outcome.json", None, outcomes)
    assert json.loads((tmp_path / "outcome.json").read_text())["code"] == 3


@needs_flower
@pytest.mark.parametrize(("fails", "ends"), [(False, [3, 3, 3]), (True, None)])
def test_where_one_is_stopped_the_others_stop_and_the_run_says_so(
    fails: bool, ends: list[int] | None, caplog: pytest.LogCaptureFixture
) -> None:
    from lowcomm.federation.session import FederationError, Session

    def stop(transport: Relayed) -> str:
        talk(transport, 2)
        raise KeyboardInterrupt

    def can_not_save(transport: Relayed) -> None:
        with pytest.raises(StoppedError):
            talk(transport)
        raise OSError("the disk is full")

    one = Session(Loopback([talk, stop, can_not_save if fails else talk]), 3, 5.0)  # pyright: ignore[reportArgumentType]
    if ends is None:
        with pytest.raises(FederationError, match="client 1 ended with exit code 3"):
            one.run()
    else:
        assert [outcome.code for outcome in one.run()] == ends
    assert "client 1 ended with exit code 3: it was stopped. The others save and stop, too" in caplog.text


@needs_flower
@pytest.mark.parametrize("numbers", [[0, 0], [1, 2], [0, -1]])
def test_clients_with_the_wrong_numbers_are_refused(numbers: list[int]) -> None:
    _, failure = session([lambda t: None] * 2, numbers)
    assert failure is not None
    assert "Fix: give each client its own --client" in failure


@needs_flower
def test_a_run_does_not_wait_for_ever_for_clients() -> None:
    from lowcomm.federation.session import FederationError, Session

    with pytest.raises(FederationError, match=r"only 1 of 2 clients are connected after 0.1 s. Fix: start the others"):
        Session(Loopback([talk]), 2, 0.1).run()  # pyright: ignore[reportArgumentType]


@needs_flower
def test_other_weights_at_the_end_are_an_error() -> None:
    _, failure = session([lambda transport: str(transport.local[0])] * 2)
    assert failure == "the clients ended with different global weights"


# keys and certificates


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if MISSING:
        pytest.skip(MISSING)
    directory = tmp_path_factory.mktemp("federation") / "keys"
    assert main(["federation", "keys", "--directory", str(directory), "--clients", "3"]) == 0
    return directory


def test_private_files_are_for_their_owner(keys: Path) -> None:
    private = [keys / "server" / "server.key", *keys.glob("client-*/node.key"), *keys.glob("client-*/worker.secret")]
    assert len(private) == 7
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in private)
    assert len({path.read_bytes() for path in private}) == 7
    assert not list(keys.rglob("ca.key"))


def test_keys_are_never_overwritten(keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (keys / "ca.crt").read_bytes()
    for command in (["keys", "--directory", str(keys)], ["node", "--directory", str(keys / "client-0")]):
        assert main(["federation", *command]) == 2
        assert "holds keys already. Fix: " in capsys.readouterr().err
    assert (keys / "ca.crt").read_bytes() == before


@pytest.fixture
def tls_server(keys: Path) -> Iterator[int]:
    with serving(keys) as port:
        yield port


def check(port: int, authority: Path, key: Path) -> int:
    return main(["federation", "check", "--superlink", f"127.0.0.1:{port}", "--ca", str(authority), "--key", str(key)])


def test_the_certificate_is_the_servers(
    keys: Path, tls_server: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = keys / "client-1" / "node.pub"
    assert check(tls_server, keys / "ca.crt", key) == 0
    assert "fingerprint" in capsys.readouterr().out
    assert main(["federation", "keys", "--directory", str(tmp_path / "other"), "--clients", "1"]) == 0
    capsys.readouterr()
    assert check(tls_server, tmp_path / "other" / "ca.crt", key) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "did not sign" in line
    assert "SHA-256" in line
    assert "Fix: get ca.crt from the server's owner" in line


def test_a_client_that_does_not_trust_the_server_does_not_start(keys: Path, tls_server: int, tmp_path: Path) -> None:
    """It asks the server before it starts a SuperNode."""
    assert main(["federation", "keys", "--directory", str(tmp_path / "other"), "--clients", "1"]) == 0
    server = ["--superlink", f"127.0.0.1:{tls_server}", "--ca", str(tmp_path / "other" / "ca.crt")]
    own = ["--keys", str(keys / "client-0"), "--client", "0", "--clients", "3", "--port", str(free_port(1))]
    refused = launch("launch/federation/client.sh", *server, *own, "--python", sys.executable, "diloco.py:smoke")
    assert (refused.returncode, refused.stdout) == (2, "")
    (line,) = refused.stderr.splitlines()
    assert line.startswith("lowcomm: error: the server at ") and "did not sign" in line and "Fix: get ca.crt" in line
    assert not (keys / "client-0" / "supernode.log").exists()


# bad input


@pytest.mark.parametrize(
    "command",
    [
        ["keys", "--directory", "x"],
        ["node", "--directory", "x"],
        ["check", "--superlink", "127.0.0.1:1", "--ca", "x", "--key", "x"],
        ["register", "--superlink", "127.0.0.1:1", "--ca", "x", "x"],
        ["run", "--superlink", "127.0.0.1:1", "--ca", "x", "--clients", "3"],
        ["client", "diloco.py:smoke", "--client", "0", "--clients", "3", "--node", "127.0.0.1:1", "--secret", "x"],
    ],
    ids=lambda c: c[0],
)
def test_without_flower_the_extra_is_named(
    command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def version(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lowcomm.federation.engine.metadata.version", version)
    assert main(["federation", *command]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("package flwr is missing. Fix: pip install 'lowcomm[flower]'")
    monkeypatch.setattr("lowcomm.federation.engine.metadata.version", lambda package: "1.41.0")
    assert main(["federation", *command]) == 2
    assert "flwr 1.41.0 is installed, 1.42 is needed. Fix: " in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "nothing was started"


CLIENT = ["client", "diloco.py:smoke", "--client", "0", "--clients", "3", "--node", "127.0.0.1:1", "--secret", "none"]
CASES: list[tuple[list[str], str]] = [
    (["keys", "--directory", "x", "--clients", "-1"], "clients = -1"),
    (["keys", "--directory", "x", "--days", "0"], "days = 0"),
    (["keys", "--directory", "x", "--host", ""], "host = ''"),
    (["keys", "--directory", "/proc/none"], "can't be written"),
    (["check", "--superlink", "127.0.0.1:1", "--ca", "none", "--key", "none"], "none is not there. Fix: get ca.crt"),
    (["run", "--superlink", "nowhere", "--ca", "x", "--clients", "3"], "superlink = 'nowhere'"),
    (["run", "--superlink", "127.0.0.1:1", "--ca", "none", "--clients", "3"], "ca = 'none' is no certificate"),
    (["run", "--superlink", "127.0.0.1:1", "--ca", "none", "--clients", "0"], "clients = 0"),
    (CLIENT, "secret = 'none' can't be read. Fix: "),
    ([*CLIENT, "--islands", "4"], "islands = 4"),
    ([*CLIENT, "--steps", "x"], "steps"),
    ([*CLIENT, "--client", "3"], "client = 3"),
    ([*CLIENT, "--node", "10.0.0.1:9094"], "node = '10.0.0.1:9094'"),
    ([*CLIENT, "--transport", "simulated"], "transport = 'simulated'"),
]


@needs_flower
@pytest.mark.parametrize(("command", "message"), CASES, ids=[message for _, message in CASES])
def test_bad_input_is_one_line(
    command: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["federation", *command]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not list(tmp_path.iterdir()), "nothing was started"


# SuperLink, SuperNodes and trainers as processes

RECIPE_TEXT = """
import dataclasses
from pathlib import Path
from lowcomm.secure import SecureSum
from tests.support.runs import small

def few():
    return small(Path({corpus!r}), None, islands=None, transport="collective", steps=8)

def endless():
    config = small(Path({corpus!r}), None, islands=None, transport="collective", steps=10**6)
    return dataclasses.replace(config, sync=dataclasses.replace(config.sync, secure=SecureSum(threshold=0.6)))
"""


def free_port(count: int) -> int:
    """The first of `count` neighbouring ports of 127.0.0.1 that nobody uses."""
    for first in range(20_000 + os.getpid() % 10_000, 60_000, count):
        try:
            for port in range(first, first + count):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return first
    raise AssertionError("no port is free")


@contextlib.contextmanager
def federation(directory: Path, clients: int, port: int, recipe: str) -> Iterator[subprocess.Popen[str]]:
    """launch/federation/local.sh; whatever is left of it at the end is killed."""
    arguments = ["--clients", clients, "--directory", directory / "runs", "--port", port, "--python", sys.executable]
    process = subprocess.Popen(
        ["bash", "launch/federation/local.sh", *map(str, arguments), f"{directory / 'recipe.py'}:{recipe}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=60)


def prepare(directory: Path) -> Path:
    (directory / "corpus").mkdir()
    corpus = str(write_corpus(directory / "corpus"))
    (directory / "recipe.py").write_text(RECIPE_TEXT.format(corpus=corpus), encoding="utf-8")
    return directory


@needs_flower
@pytest.mark.slow
@pytest.mark.timeout(600)  # eight processes import torch or flwr, on a machine that may be busy
def test_two_organisations_train_what_torchrun_would(tmp_path: Path) -> None:
    prepare(tmp_path)
    with federation(tmp_path, 2, free_port(4), "few") as process:
        out, _ = process.communicate(timeout=400)
    logs = "\n".join(path.read_text() for path in (tmp_path / "runs").glob("*.log"))
    assert process.returncode == 0, out + logs
    arguments = ["train", f"{tmp_path / 'recipe.py'}:few", "--run-dir", str(tmp_path / "one")]
    assert run_islands(arguments, 2, tmp_path / "log") == [0, 0], (tmp_path / "log").read_text()
    expected = summary(tmp_path / "one")
    assert f"done: 2 clients, weights_sha256 {expected['weights_sha256']}" in out
    for k in range(2):
        found = summary(tmp_path / "runs" / f"client-{k}")
        for key in ("status", "weights_sha256", "val_loss", "val_bpb", "tokens", "steps", "rounds"):
            assert found[key] == expected[key], key
        payload_bytes = 2 * 4 * found["parameters"]  # two rounds in fp32, each way
        assert payload_bytes <= found["bytes_sent"] < 1.02 * payload_bytes
        assert payload_bytes <= found["bytes_received"] < 1.02 * payload_bytes


def until(condition: Callable[[], bool], seconds: float) -> None:
    """Several processes write files and none of them tells: look again until it is so."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)


def events(run_dir: Path, event: str) -> int:
    try:
        text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    except FileNotFoundError:
        return 0
    return text.count(f'"event": "{event}"')


@needs_flower
@pytest.mark.slow
@pytest.mark.long  # twelve processes that import flwr or torch; what the server does is in test_federation_lost.py
@pytest.mark.timeout(900)
def test_strangers_are_refused_and_a_masked_run_goes_on_while_it_can(tmp_path: Path) -> None:
    """A node that the server does not know is turned away; then two of three trainers are killed, one by one."""
    runs, port = prepare(tmp_path) / "runs", free_port(7)
    with federation(tmp_path, 3, port, "endless") as process:
        until(lambda: process.poll() is not None or events(runs / "client-0", "sync") > 0, 300)
        assert process.poll() is None, process.communicate()[0]
        assert events(runs / "client-0", "sync") > 0, "the first round took too long"
        assert main(["federation", "node", "--directory", str(tmp_path / "stranger")]) == 0
        server = ["--superlink", f"127.0.0.1:{port}", "--ca", runs / "keys" / "ca.crt", "--keys", tmp_path / "stranger"]
        own = ["--client", 1, "--clients", 3, "--port", port + 6, "--python", sys.executable]
        refused = launch("launch/federation/client.sh", *map(str, [*server, *own]), f"{tmp_path / 'recipe.py'}:endless")
        is_refusal(refused, f"--keys = '{tmp_path / 'stranger'}'")
        kill_trainer(runs / "client-0")
        until(lambda: process.poll() is not None or events(runs / "client-2", "lost") > 0, 200)
        assert process.poll() is None, process.communicate()[0]
        assert events(runs / "client-2", "lost") > 0, "the next round took too long"
        kill_trainer(runs / "client-1")
        out, _ = process.communicate(timeout=200)
    assert process.returncode == 1, out
    assert "client 0 is lost, the others go on without it: " in out
    assert "lowcomm: error: all clients are lost, client 0 first: " in out
    assert "island 2 has lost all others" in (runs / "client-2.log").read_text()
    found = summary(runs / "client-2")
    assert (found["status"], list(found["lost"])) == ("failed", ["0"])
    saved = checkpoint.names(runs / "client-2" / "checkpoints")
    assert saved and all(int(name.partition("-")[0]) > 0 for name in saved)


def kill_trainer(run_dir: Path) -> None:
    (victim,) = [p for p in psutil.process_iter() if is_trainer(p, run_dir)]
    victim.kill()


def is_trainer(process: psutil.Process, run_dir: Path) -> bool:
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    return "lowcomm.cli" in command and "client" in command and str(run_dir) in command
