from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowcomm.doctor import command as doctor
from lowcomm.doctor import host as doctor_host
from lowcomm.doctor import links as doctor_links
from lowcomm.doctor import network as doctor_network
from lowcomm.doctor.links import Links
from lowcomm.doctor.network import Choice, Interface
from lowcomm.types import ConfigError

ROOT = Path(__file__).resolve().parents[2]
VARIABLES = (
    "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
    "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "OMP_NUM_THREADS",
)  # fmt: skip
LOOPBACK = Interface(name="lo", addresses=("127.0.0.1", "::1"), up=True, speed_mbit_per_s=None)
PRIVATE = Interface(name="eth7", addresses=("10.1.2.3",), up=True, speed_mbit_per_s=1000)


@pytest.fixture(autouse=True)
def no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def _links(bandwidth: list[list[float | None]], labels: list[str]) -> Links:
    latency: list[list[float | None]] = [[None if v is None else 100.0 / v for v in row] for row in bandwidth]
    return Links(labels=labels, latency_ms=latency, bandwidth_mb_per_s=bandwidth, payload_bytes=1024)


def test_alone_it_reports_and_writes_nothing_but_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "doctor.json"
    assert doctor.run_doctor(target, tmp_path / "deep" / "runs") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["doctor.json"]
    facts = json.loads(target.read_text())
    assert facts["backend"] in ("gloo", "nccl")
    assert facts["cores"] >= 1
    assert facts["threads_per_rank"] == facts["cores"]
    assert 0 < facts["memory_available_bytes"] <= facts["memory_total_bytes"]
    assert facts["disk"]["path"] == str(tmp_path.resolve())
    assert facts["disk"]["write_bytes_per_s"] > 0
    assert len(set(facts["free_ports"])) == 3
    assert "links" not in facts
    out = capsys.readouterr().out
    for word in ("torch 2.", "fsync", "GLOO_SOCKET_IFNAME=(not set)", "pip install 'lowcomm[", facts["interface"]):
        assert word in out


def test_three_ranks_measure_every_pair(tmp_path: Path) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text(
        "import sys\nfrom pathlib import Path\nfrom lowcomm.doctor.command import run_doctor\n"
        "sys.exit(run_doctor(Path(sys.argv[1]), Path(sys.argv[2]), 200_000))\n"
    )
    target = tmp_path / "links.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", "3", str(driver), str(target), str(tmp_path / "runs")]
    extra = {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, env=os.environ | extra, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads(target.read_text())
    assert (facts["world"], facts["backend"], facts["interface"]) == (3, "gloo", "lo (127.0.0.1)")
    links = facts["links"]
    assert [label.partition("|")[0] for label in links["labels"]] == [socket.gethostname()] * 3
    for key, least, most in (("latency_ms", 1e-4, 1e3), ("bandwidth_mb_per_s", 1e-1, 1e6)):
        for i, row in enumerate(links[key]):
            assert len(row) == 3
            for j, value in enumerate(row):
                assert value is None if i == j else least < value < most, (key, i, j, value)
    assert all(links["latency_ms"][i][j] == links["latency_ms"][j][i] for i in range(3) for j in range(3))
    assert done.stdout.count("lowcomm doctor") == 1, "only rank 0 prints"
    assert "bandwidth, MB/s" in done.stdout
    assert "slowest link: rank" in done.stdout


def test_an_unreachable_peer_is_one_line_and_exit_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(backend: str, label: str, payload_bytes: int) -> tuple[Links, int]:
        raise RuntimeError("Connection refused\nC++ stack")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(doctor_links, "measure_links", refuse)
    assert doctor.run_doctor(None, tmp_path) == 1
    out = capsys.readouterr().out
    assert "problem: rank 0 could not measure the links: Connection refused" in out
    assert "C++" not in out
    monkeypatch.setenv("RANK", "1")
    assert doctor.run_doctor(None, tmp_path) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)


@pytest.mark.parametrize("payload", [0, 1023, 1_000_000_001])
def test_payload_out_of_range(payload: int) -> None:
    with pytest.raises(ConfigError, match=rf"payload_bytes={payload} .*1024\.\.1000000000"):
        doctor.run_doctor(payload_bytes=payload)


def test_bad_paths(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match="run_dir="):
        doctor.run_doctor(run_dir=file)
    with pytest.raises(ConfigError, match="json="):
        doctor.run_doctor(tmp_path / "missing" / "x.json")
    with pytest.raises(ConfigError, match="json="):
        doctor.run_doctor(tmp_path)


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "MASTER_PORT"])
@pytest.mark.parametrize("value", ["", "-1", "two", "1.5"])
def test_bad_torchrun_environment(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=variable):
        doctor.run_doctor()


def test_unwritable_run_directory_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path) -> tuple[float, float]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(doctor_host, "_time_writes", full)
    assert doctor.run_doctor(None, tmp_path) == 1
    assert "No space left" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("127.0.0.1", False), ("10.0.0.1", False), ("192.168.3.4", False), ("172.20.1.1", False), ("::1", False),
        ("fe80::1%eth0", False), ("fd00::2", False), ("169.254.1.1", False), ("8.8.8.8", True), ("2001:4860::1", True),
    ],
)  # fmt: skip
def test_public_addresses(address: str, public: bool) -> None:
    assert doctor_network.is_public(address) is public


def test_warns_of_a_public_rendezvous_and_a_public_interface() -> None:
    chosen = Choice(value="eth7 (10.1.2.3)", why="")
    known = [LOOPBACK, PRIVATE]
    assert doctor_network.network_warnings("10.1.2.3", 2, chosen, known) == []
    (note,) = doctor_network.network_warnings("8.8.8.8", 2, chosen, known)
    assert "MASTER_ADDR=8.8.8.8 (8.8.8.8) is public" in note
    assert "neither encrypted nor authenticated" in note
    wide = Interface(name="eth9", addresses=("1.1.1.1",), up=True, speed_mbit_per_s=None)
    (note,) = doctor_network.network_warnings("10.1.2.3", 1, chosen, [*known, wide])
    assert "eth9 (1.1.1.1) is public" in note


def test_warns_of_a_loopback_bind_that_other_nodes_cannot_reach() -> None:
    chosen = Choice(value="lo (127.0.1.1)", why="")
    (note,) = doctor_network.network_warnings("10.1.2.3", 2, chosen, [LOOPBACK])
    assert "set GLOO_SOCKET_IFNAME" in note
    assert doctor_network.network_warnings("127.0.0.1", 2, chosen, [LOOPBACK]) == []


def test_the_socket_variable_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    known = [LOOPBACK, PRIVATE]
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "=lo")
    assert doctor_network.choose_interface("gloo", "127.0.0.1", known).value == "eth7 (10.1.2.3)"
    assert doctor_network.choose_interface("nccl", "127.0.0.1", known).value == "=lo (127.0.0.1)"
    monkeypatch.delenv("NCCL_SOCKET_IFNAME")
    assert doctor_network.choose_interface("nccl", "127.0.0.1", known).value == "lo (127.0.0.1)"


@pytest.mark.parametrize(("gpus", "local", "backend"), [(0, 1, "gloo"), (2, 4, "gloo"), (4, 4, "nccl")])
def test_backend(gpus: int, local: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("torch.distributed.is_nccl_available", lambda: True)
    choice = doctor_network.choose_backend(local)
    assert choice.value == backend
    assert choice.why


def test_interfaces_with_and_without_psutil_agree() -> None:
    pytest.importorskip("psutil")
    bare = {i.name: i for i in doctor_network.interfaces_without_psutil()}
    full = {i.name: i for i in doctor_network.interfaces()}
    assert bare.keys() >= full.keys()
    assert "127.0.0.1" in bare["lo"].addresses
    for name, interface in full.items():
        assert set(bare[name].addresses) <= set(interface.addresses), name


def test_a_free_port_can_be_bound_and_a_taken_one_is_seen() -> None:
    port = doctor_host.free_ports(1)[0]
    assert doctor_host.port_is_free(port)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", port))
        sock.listen()
        assert not doctor_host.port_is_free(port)


@given(st.integers(2, 6), st.data())
def test_verdict_names_the_slowest_link(world: int, data: st.DataObject) -> None:
    pairs = [(i, j) for i in range(world) for j in range(world) if i != j]
    slow = data.draw(st.sampled_from(pairs))
    bandwidth: list[list[float | None]] = [
        [None if i == j else 1.5 if (i, j) == slow else 100.0 + i + j for j in range(world)] for i in range(world)
    ]
    verdict = doctor_links.verdict(_links(bandwidth, [f"host{rank}|2|1" for rank in range(world)]))
    assert f"slowest link: rank {slow[0]} -> {slow[1]} (host{slow[0]} -> host{slow[1]}) at 1.5 MB/s" in verdict
    assert f"longest latency: rank {slow[0]} -> {slow[1]}" in verdict


def test_different_versions_are_named() -> None:
    assert doctor_links.version_notes(["a|2.13|0.1", "b|2.13|0.1"]) == []
    (note,) = doctor_links.version_notes(["a|2.13|0.1", "b|2.12|0.1"])
    assert "2.12|0.1, 2.13|0.1" in note


def test_a_wide_matrix_is_left_to_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    world = 13
    bandwidth: list[list[float | None]] = [[None if i == j else 5.0 for j in range(world)] for i in range(world)]
    links = doctor_links.as_facts(_links(bandwidth, ["h|2|1"] * world))
    doctor.print_links(Console(width=140), links)
    out = capsys.readouterr().out
    assert "13 ranks" in out
    assert "slowest link" in out
    assert "bandwidth, MB/s" not in out
