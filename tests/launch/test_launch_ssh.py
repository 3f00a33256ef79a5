"""launch/ssh.sh for real: sshd on two hosts of the laboratory, the launcher on a third. Hosts share no directory."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.netlab import Lab, why_not
from tests.launch.test_launch_node import RECIPE, left_behind, wait_for
from tests.support.runs import ROOT, write_corpus
from tests.test_package import build_wheel

SSHD = shutil.which("sshd", path=f"/usr/sbin:/usr/local/sbin:{os.environ['PATH']}")
REASON = why_not() or (None if SSHD else "sshd is not installed") or (None if shutil.which("ssh") else "ssh is missing")
pytestmark = [pytest.mark.skipif(REASON is not None, reason=f"no ssh between hosts here: {REASON}"), pytest.mark.slow]
# Each host has a home of its own; ssh starts in it. South has rsync unless there is a directory of programs without it.
SSHD_CONFIG = """
Port 2222
ListenAddress 10.78.0.{host}
HostKey {base}/host_key
AuthorizedKeysFile {base}/key.pub
PidFile none
StrictModes no
PasswordAuthentication no
SetEnv HOME={base}/home{host} LAUNCH_TEST={base} OMP_NUM_THREADS=1
ForceCommand cd "$HOME" && if [ -d programs ]; then PATH=$HOME/programs; fi && eval "$SSH_ORIGINAL_COMMAND"
"""
SSH_CONFIG = """
Host {name}
  HostName 10.78.0.{host}
  HostKeyAlias laboratory
  Port 2222
  User root
  IdentityFile {base}/key
  IdentitiesOnly yes
  UserKnownHostsFile {base}/known_hosts
  StrictHostKeyChecking yes
"""
# Where a wheel is all there is, there are no tests to import.
WHEEL_RECIPE = """
import lowcomm
from lowcomm.config import CheckpointConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig, TextFiles
from lowcomm.model import ModelConfig

def two():
    print("lowcomm is that of", lowcomm.__file__)
    data = DataConfig(source=TextFiles(glob={corpus!r}), seq_len=32, batch_size=2, validation_sequences=8)
    return RunConfig(
        steps=4, device="cpu", data=data, model=ModelConfig(preset="nano"), sync=SyncConfig(every=4),
        transport="collective", checkpoint=CheckpointConfig(every_rounds=1, export=False),
    )
"""
FLAGS = ("--run-dir", "runs/lab", "--threads", "1", "--no-tensorboard")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Hosts north and south with sshd running, and everything that the launcher needs in this directory."""
    base = tmp_path_factory.mktemp("ssh")
    corpus = base / "corpus"
    corpus.mkdir()
    (base / "tiny.py").write_text(RECIPE.format(corpus=str(write_corpus(corpus))), encoding="utf-8")
    for name in ("key", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", base / name], check=True)
    (base / "known_hosts").write_text(f"laboratory {(base / 'host_key.pub').read_text()}", encoding="utf-8")
    names = ("north", "south")
    (base / "hosts").write_text("".join(f"{n} 10.78.0.{k} 0 {k - 1}\n" for k, n in enumerate(names, 1)))
    (base / "config").write_text("".join(SSH_CONFIG.format(name=n, host=k, base=base) for k, n in enumerate(names, 1)))
    Path("/run/sshd").mkdir(exist_ok=True)
    with Lab(3) as lab:
        servers = []
        for k in (1, 2):
            (base / f"home{k}").mkdir()
            (base / f"sshd{k}").write_text(SSHD_CONFIG.format(host=k, base=base), encoding="utf-8")
            command = [str(SSHD), "-D", "-e", "-f", str(base / f"sshd{k}")]
            servers.append(lab.start(k, command, {}, base / f"sshd{k}.log"))
        yield base
        for server in servers:
            server.terminate()
            server.wait(20)


PORTS = itertools.count(29600)


def start(
    base: Path, *flags: str, options: tuple[str | Path, ...] = (), recipe: str = "tiny.py"
) -> subprocess.Popen[str]:
    """The launcher on host 3, in a session of its own as in a terminal."""
    command = ["bash", "launch/ssh.sh", "--hosts", base / "hosts", "--ssh-config", base / "config", *options]
    # a port for each: the one before may not have been let go yet
    command += ["--port", str(next(PORTS)), "--python", sys.executable, f"{base}/{recipe}:two", *FLAGS, *flags]
    return subprocess.Popen(
        # a suite in the background ignores Ctrl-C, and a shell cannot trap what it was born to ignore
        ["ip", "netns", "exec", "lowcomm3", "env", "--default-signal=INT", *command],
        cwd=ROOT,
        env={**os.environ, "LAUNCH_TEST": str(base)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def global_weights(home: Path, name: str) -> list[str]:
    """SHA-256 of the global part that this host saved."""
    files = sorted(
        (home / "lowcomm-launch" / "runs" / "lab" / "checkpoints" / name).glob("island-*/global*.safetensors")
    )
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


def programs_without(name: str, into: Path) -> None:
    """A directory for PATH with links to all that is on this one's, but for one program."""
    into.mkdir()
    for folder in os.environ["PATH"].split(os.pathsep):
        for program in Path(folder).glob("*"):
            if program.name != name and not (into / program.name).exists():
                (into / program.name).symlink_to(program)


def test_two_hosts_train_to_the_end_with_equal_weights(base: Path) -> None:
    """Host south has no rsync, host north has: each gets the checkout in its way."""
    programs_without("rsync", base / "home2" / "programs")
    try:
        process = start(base)
        out, _ = process.communicate(timeout=200)
    finally:
        shutil.rmtree(base / "home2" / "programs")
    assert process.returncode == 0, out
    assert "[south] launch: no rsync there, so tar copies" in out and "[north] launch: no rsync" not in out
    runs = [base / f"home{k}" / "lowcomm-launch" / "runs" / "lab" for k in (1, 2)]
    summary = json.loads((runs[0] / "summary.json").read_text())
    assert (summary["status"], summary["islands"], summary["rounds"]) == ("done", 2, 3)
    assert not (runs[1] / "summary.json").exists(), "the hosts share a directory: that is not two machines"
    weights = [global_weights(base / f"home{k}", "000003") for k in (1, 2)]
    assert len(weights[0]) == 1
    assert weights[0] == weights[1]
    assert "[north] " in out
    assert left_behind(str(base)) == []


@pytest.mark.long
def test_a_wheel_is_what_runs_whatever_lies_there(base: Path) -> None:
    """The checkout of the run before is still there, and both hosts train with the wheel's code all the same."""
    for k in (1, 2):
        home = base / f"home{k}" / "lowcomm-launch"
        (home / "lowcomm").mkdir(parents=True, exist_ok=True)
        (home / "lowcomm" / "__init__.py").write_text("raise ImportError('the code of a checkout')", encoding="utf-8")
        shutil.rmtree(home / "runs", ignore_errors=True)
    recipe = WHEEL_RECIPE.format(corpus=f"{base}/corpus/*.txt")
    (base / "wheel.py").write_text(recipe, encoding="utf-8")
    (base / "built").mkdir()
    process = start(base, options=("--wheel", build_wheel(base / "built")), recipe="wheel.py")
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out
    for k, name in enumerate(("north", "south"), 1):
        assert f"[{name}] lowcomm is that of {base}/home{k}/lowcomm-launch/site/lowcomm/__init__.py" in out
    weights = [global_weights(base / f"home{k}", "000001") for k in (1, 2)]
    assert len(weights[0]) == 1
    assert weights[0] == weights[1]


def test_ctrl_c_saves_everywhere_and_leaves_no_process(base: Path) -> None:
    for k in (1, 2):
        shutil.rmtree(base / f"home{k}" / "lowcomm-launch" / "runs", ignore_errors=True)
    process = start(base, "--steps", "100000", "--log-every", "1")
    wait_for(process, "[north] step ")
    assert len(left_behind(str(base))) > 4  # so that an empty list below means something
    os.killpg(process.pid, signal.SIGINT)  # to the launcher and all that it started here, as a terminal does
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 3, out
    for k in (1, 2):
        saved = base / f"home{k}" / "lowcomm-launch" / "runs" / "lab" / "checkpoints"
        assert [p.name for p in saved.glob("*-stop0/island-*")] == [f"island-{k - 1:05d}"], out
    assert left_behind(str(base)) == []


@pytest.mark.long  # what node.sh does when its input ends, as it does then, is in test_launch_node.py
def test_a_killed_launcher_leaves_no_process(base: Path) -> None:
    """kill -9 runs no trap: the machines see that it is gone."""
    for k in (1, 2):
        shutil.rmtree(base / f"home{k}" / "lowcomm-launch" / "runs", ignore_errors=True)
    process = start(base, "--steps", "100000", "--log-every", "1")
    wait_for(process, "[north] step ")
    process.kill()
    out, _ = process.communicate(timeout=200)  # the pipe is closed when the last log has come
    assert "stopped (SIGTERM)" in out
    assert list((base / "home2" / "lowcomm-launch" / "runs" / "lab" / "checkpoints").glob("*-stop0/island-00001"))


def test_an_unreachable_machine_is_named(base: Path) -> None:
    (base / "wrong").write_text("north 10.78.0.1 0 0\nnowhere.invalid 10.78.0.9 0 1\n")
    command = ["bash", "launch/ssh.sh", "--hosts", base / "wrong", "--ssh-config", base / "config", "diloco.py:smoke"]
    done = subprocess.run(
        # a suite in the background ignores Ctrl-C, and a shell cannot trap what it was born to ignore
        ["ip", "netns", "exec", "lowcomm3", "env", "--default-signal=INT", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "the copy to nowhere.invalid failed" in done.stdout
