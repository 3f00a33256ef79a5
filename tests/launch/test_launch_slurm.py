"""launch/slurm.sbatch under a real SLURM: a controller and three nodes in one network namespace of this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.test_launch_node import RECIPE
from tests.support.runs import ROOT, write_corpus

SPACE = "lowcommslurm"
NODES = ("n1", "n2", "n3")
TOOLS = ("slurmctld", "slurmd", "munged", "mungekey", "sbatch", "srun", "ip")
PATH = f"/usr/sbin:/usr/local/sbin:{os.environ['PATH']}"
MISSING = [tool for tool in TOOLS if shutil.which(tool, path=PATH) is None]
REASON = f"not installed: {', '.join(MISSING)}" if MISSING else None if os.geteuid() == 0 else "namespaces need root"
pytestmark = [pytest.mark.skipif(REASON is not None, reason=f"no SLURM here: {REASON}"), pytest.mark.slow]
CONFIG = """
ClusterName=laboratory
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={base}/munge.socket
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1
ReturnToService=2
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool-%n
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd-%n.pid
SlurmctldLogFile={base}/slurmctld.log
SlurmdLogFile={base}/slurmd-%n.log
{nodes}
PartitionName=all Nodes=n[1-3] Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """Daemons that were started here, and commands inside their namespace."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.children: list[subprocess.Popen[bytes]] = []
        self.environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(base / "slurm.conf"), "OMP_NUM_THREADS": "1"}

    def run(self, *command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ip", "netns", "exec", SPACE, *command],
            cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip

    def start(self, *command: str) -> None:
        with (self.base / f"{Path(command[0]).name}.out").open("ab") as out:
            full = ["ip", "netns", "exec", SPACE, *command]
            self.children.append(subprocess.Popen(full, env=self.environment, stdout=out, stderr=out))

    def logs(self) -> str:
        paths = sorted([*self.base.glob("*.log"), *self.base.glob("*.out")])
        return "\n".join(f"== {p.name}\n{p.read_text(errors='replace')[-3000:]}" for p in paths)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    base = tmp_path_factory.mktemp("slurm")
    made = Slurm(base)
    places = Path("/etc/netns") / SPACE
    places.mkdir(parents=True)
    (places / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"127.0.1.{k} n{k}\n" for k in (1, 2, 3)))
    nodes = "\n".join(
        f"NodeName={n} NodeHostname={socket.gethostname()} NodeAddr=127.0.1.{k} Port={17000 + k} CPUs=1 State=UNKNOWN"
        for k, n in enumerate(NODES, 1)
    )
    (base / "slurm.conf").write_text(CONFIG.format(base=base, host=socket.gethostname(), nodes=nodes))
    (base / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # none is mounted inside the namespace, and none used
    for name in ("state", *(f"spool-{n}" for n in NODES)):
        (base / name).mkdir()
    subprocess.run(["ip", "netns", "add", SPACE], check=True)
    try:
        made.run("ip", "link", "set", "lo", "up")
        for k in (1, 2, 3):
            made.run("ip", "addr", "add", f"127.0.1.{k}/32", "dev", "lo")
        start_daemons(made)
        yield made
    finally:
        for child in reversed(made.children):
            child.terminate()
        for child in made.children:
            child.wait(30)
        subprocess.run(["ip", "netns", "del", SPACE], check=False)
        shutil.rmtree(places)


def start_daemons(slurm: Slurm) -> None:
    base = slurm.base
    base.chmod(0o755)
    made = slurm.run("mungekey", "--create", f"--keyfile={base}/munge.key")
    assert made.returncode == 0, made.stderr
    munged = ["munged", "--foreground", "--force", f"--socket={base}/munge.socket", f"--key-file={base}/munge.key"]
    slurm.start(
        *munged, f"--pid-file={base}/munge.pid", f"--seed-file={base}/munge.seed", f"--log-file={base}/munge.log"
    )
    slurm.start("slurmctld", "-D", "-c")
    for name in NODES:
        slurm.start("slurmd", "-D", "-N", name)


def submit(slurm: Slurm, script: str, recipe: str, run: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Ends with the job, as `sbatch --wait` does, which looks more and more seldom; its exit code is the job's own."""
    export = f"ALL,PYTHON={sys.executable},RUN_DIR={run},BEHIND_FIREWALL=1"
    done = slurm.run(
        *("sbatch", "--parsable", "--time", "30", "--output", f"{run.parent}/job.log", *options, "--export", export),
        *(f"launch/{script}", recipe, "--threads", "1", "--no-tensorboard"),
    )
    if done.returncode != 0:
        return done
    ends = time.monotonic() + 200
    while time.monotonic() < ends:
        shown = slurm.run("scontrol", "--oneliner", "show", "job", done.stdout.strip())
        states = re.findall(r" JobState=(\w+)", shown.stdout)
        if states and not {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING"} & set(states):
            done.returncode = max(int(code) for code in re.findall(r" ExitCode=(\d+):", shown.stdout))
            return done
        time.sleep(0.3)
    raise AssertionError(f"the job does not end\n{shown.stdout}\n{slurm.logs()}")


def test_two_islands_train_to_the_end(slurm: Slurm, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (tmp_path / "tiny.py").write_text(RECIPE.format(corpus=str(write_corpus(corpus))), encoding="utf-8")
    done = submit(slurm, "slurm.sbatch", f"{tmp_path}/tiny.py:two", tmp_path / "run", "--nodes", "2")
    log = (tmp_path / "job.log").read_text() if (tmp_path / "job.log").exists() else ""
    assert done.returncode == 0, done.stderr + log + slurm.logs()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["islands"], summary["rounds"]) == ("done", 2, 3)


def test_bad_input_ends_the_job_with_2(slurm: Slurm, tmp_path: Path) -> None:
    done = submit(slurm, "slurm.sbatch", "diloco.py:nothing", tmp_path / "run", "--nodes", "2")
    log = (tmp_path / "job.log").read_text()
    assert done.returncode == 2, log + done.stderr + slurm.logs()
    assert "has no function 'nothing'" in log


def test_a_heterogeneous_job_trains_to_the_end(slurm: Slurm, tmp_path: Path) -> None:
    """One node of each kind, one rank on each: an island is a component of the job."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (tmp_path / "tiny.py").write_text(RECIPE.format(corpus=str(write_corpus(corpus))), encoding="utf-8")
    slurm.environment |= {"RANKS_0": "1", "RANKS_1": "1"}
    both = ("--nodes", "1", ":", "--nodes", "1", "--time", "30")
    done = submit(slurm, "slurm-het.sbatch", f"{tmp_path}/tiny.py:two", tmp_path / "run", *both)
    log = (tmp_path / "job.log").read_text() if (tmp_path / "job.log").exists() else ""
    assert done.returncode == 0, done.stderr + log + slurm.logs()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["islands"], summary["rounds"]) == ("done", 2, 3)
