"""Names and flags of all kinds of characters on their way through every launcher: word for word, and nothing is run."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.launch.test_launch import CLIENT, IMAGE, LAUNCH, ROOT, SECRET, launch, manifests, needs_kubectl

FILE = "my 'own' \"x\"; touch PWNED; $(touch PWNED) `touch PWNED` & \\ *\nnew\tline.py"
"""A legal name of a file."""
FLAGS = [
    *(
        "--name",
        "it's two  words",
        "--a",
        "$(touch PWNED)",
        "--b",
        "`touch PWNED`",
        "--c",
        "; touch PWNED #",
        "--d",
        "",
    ),
    *("--e", "one\ntwo\n", "--f", '"', "--g", "\\", "--h", "$HOME $$ $(c)", "--i", "*", "--j", "&& touch PWNED"),
    *("--k", "~", "--l", "=x", "--m", "PATH=:", "--n", "{a,b}", "--o", "!!", "--p", "é"),
]
RECIPE = f"recipes/{FILE}:train"
RECORDER = '#!/bin/bash\nprintf \'%s\\0\' "$@" >>"$RECORD"\nprintf \'\\n\\0\' >>"$RECORD"\n'
"""A stand-in for a program: its arguments are added to the file RECORD."""


@pytest.fixture(autouse=True)
def nothing_ran(tmp_path: Path) -> Iterator[None]:
    yield
    found = [
        p
        for place in (tmp_path, ROOT, Path.home())
        for p in (place.rglob if place == tmp_path else place.glob)("PWNED")
    ]
    for path in found:
        path.unlink()
    assert not found, f"a name was run as a command: {found}"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory at the head of PATH, with a python3 that records what it was asked in `record`."""
    directory = tmp_path / "tools"
    directory.mkdir()
    program(directory / "python3", RECORDER)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))
    return directory


def program(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def recorded(path: Path) -> list[list[str]]:
    """The arguments of each call."""
    calls = path.read_text(encoding="utf-8").split("\0\n\0")
    assert calls.pop() == ""
    return [call.split("\0") for call in calls]


def words(line: str) -> list[str]:
    """A line as bash reads it."""
    return launch("-c", f"printf '%s\\0' {line}").stdout.split("\0")[:-1]


def given(arguments: list[str]) -> list[str]:
    """What a run is given behind `lowcomm.cli train`: the recipe and the flags, without those of the launcher's own."""
    train = arguments[arguments.index("train") + 1 :]
    for option in ("--islands", "--island.size", "--run-dir", "--resume"):
        if option in train:
            at = train.index(option)
            del train[at : at + 2]
    return train


def is_loaded_as_given(tmp_path: Path) -> None:
    """The dry run had the recipe loaded, under its whole name."""
    (asked,) = [call for call in recorded(tmp_path / "record") if "check" in call]
    assert asked[:5] == ["-m", "lowcomm.cli", "recipes", "check", RECIPE]
    assert [word for word in FLAGS if word not in asked] == []


@pytest.mark.parametrize("how", [("launch/local.sh",), ("launch/node.sh", "--ranks", "2")])
def test_one_node(how: tuple[str, ...], tools: Path, tmp_path: Path) -> None:
    done = launch(*how, "--dry-run", RECIPE, *FLAGS)
    assert done.returncode == 0, done.stderr
    assert given(words(done.stdout.splitlines()[-1])) == [RECIPE, *FLAGS]
    is_loaded_as_given(tmp_path)


def test_a_node_starts_what_it_was_given(tools: Path, tmp_path: Path) -> None:
    run = str(tmp_path / "run [a]; touch PWNED")
    done = launch("launch/node.sh", "--run-dir", run, "--behind-firewall", RECIPE, *FLAGS)
    assert done.returncode == 0, done.stderr
    (call,) = recorded(tmp_path / "record")
    assert given(call) == [RECIPE, *FLAGS]
    assert call[-4:] == ["--run-dir", run, "--resume", "auto"]


# What sshd does: the words, joined, are for the shell of the user.
SSH = """#!/bin/bash
while [[ $1 == -* ]]; do
  [ "$1" != -F ] || [ -f "$2" ] || exit 9
  shift 2
done
home=$HOMES/${1#*@}
mkdir -p "$home"
cd "$home" || exit
HOME=$home RECORD=$home/record exec sh -c "${*:2}"
"""


@pytest.mark.parametrize("copy", ["rsync", "tar", "wheel"])
def test_other_machines_over_ssh(copy: str, tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for ssh that gives its words to a shell, as sshd does; the checkout has such a name, too."""
    if copy == "rsync" and shutil.which("rsync") is None:
        pytest.skip("rsync is not installed")
    root, homes = tmp_path / FILE.removesuffix(".py"), tmp_path / "homes"
    shutil.copytree(LAUNCH, root / "launch")
    (root / "recipes").mkdir()
    program(tools / "ssh", SSH)
    monkeypatch.setenv("HOMES", str(homes))
    (tmp_path / "hosts").write_text("one 127.0.0.1 0 0 lo\nuser@two 127.0.0.2 0 1 lo\n")
    (tmp_path / f"config {FILE}").touch()
    mine = tmp_path / FILE
    mine.write_text("mine")
    inside = root / "recipes" / FILE
    inside.write_text("inside")
    wheel = tmp_path / "a; touch PWNED $(touch PWNED) 'b'.whl"
    wheel.touch()
    options = ["--hosts", tmp_path / "hosts", "--ssh-config", tmp_path / f"config {FILE}", "--behind-firewall"]
    options += {"rsync": [], "tar": ["--tar"], "wheel": ["--wheel", wheel]}[copy]
    for file, there in ((mine, f"launched/{FILE}"), (inside, f"recipes/{FILE}")):
        if copy == "wheel" and file == inside:
            there = f"launched/{FILE}"  # with a wheel nothing else of the checkout is copied
        done = launch(root / "launch" / "ssh.sh", *options, f"{file}:train", *FLAGS)
        assert done.returncode == 0, done.stdout + done.stderr
        for name in ("one", "two"):
            home = homes / name
            assert (home / "lowcomm-launch" / there).read_text() == file.read_text()
            *before, call = recorded(home / "record")
            assert given(call) == [f"{there}:train", *FLAGS]
            assert all("pip" in one for one in before)
            (home / "record").unlink()
        dry = launch(root / "launch" / "ssh.sh", *options, "--dry-run", f"{file}:train", *FLAGS)
        assert dry.returncode == 0, dry.stderr
        shown = [line for line in dry.stdout.splitlines() if line.startswith("  python3 -m lowcomm.run.node")]
        assert [given(words(line)) for line in shown] == [[f"{there}:train", *FLAGS]] * 2


def test_a_recipe_in_a_folder_that_is_not_copied_goes_along_by_itself(tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(LAUNCH, root / "launch")
    (root / "runs").mkdir()
    (root / "runs" / "mine.py").write_text("from lowcomm_recipes.diloco import smoke as smoke\n")
    (tmp_path / "hosts").write_text("one 10.0.0.1 0 0\n")
    arguments = ("--hosts", tmp_path / "hosts", "--dry-run", root / "runs" / "mine.py")
    done = launch(root / "launch" / "ssh.sh", *arguments)
    assert " train launched/mine.py" in done.stdout, done.stderr


SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for i in 0 1; do SLURM_PROCID=$i SLURMD_NODENAME=localhost "$@" || exit; done
"""


def test_slurm(tools: Path, tmp_path: Path) -> None:
    program(tools / "srun", SRUN)
    program(tools / "scontrol", "#!/bin/bash\necho head-node\n")
    job = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]", "BEHIND_FIREWALL": "1", "ACROSS": "lo"}
    job["RUN_DIR"] = str(tmp_path / "my 'runs'; touch PWNED")
    done = launch("launch/slurm.sbatch", RECIPE, *FLAGS, **job)
    assert done.returncode == 0, done.stderr
    calls = recorded(tmp_path / "record")
    assert [given(call) for call in calls] == [[RECIPE, *FLAGS]] * 2
    assert all(job["RUN_DIR"] in call for call in calls)
    (tmp_path / "record").unlink()
    done = launch("launch/slurm.sbatch", "--dry-run", RECIPE, *FLAGS)
    assert [given(words(line)) for line in done.stdout.splitlines() if line.startswith("  python3 ")] == [
        [RECIPE, *FLAGS]
    ] * 2
    srun = next(line for line in done.stdout.splitlines() if line.startswith("srun "))
    assert words(srun)[-len(FLAGS) - 1 :] == [RECIPE, *FLAGS]
    is_loaded_as_given(tmp_path)


@needs_kubectl
def test_kubernetes(tools: Path, tmp_path: Path) -> None:
    """The container's command with the cluster's own substitution: two dollars become one."""
    made = manifests(*IMAGE, "--dry-run", RECIPE, *FLAGS)
    (job_set,) = [part for part in made if part["kind"] == "JobSet"]
    (job,) = job_set["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    values = {e["name"]: e["value"] for e in container["env"] if "value" in e}
    script, *arguments = (text.replace("$$", "$") for text in container["args"])
    assert arguments == [RECIPE, *FLAGS]
    pod, secret = {**values, "ISLAND": "0", "NODE": "0", "POD_IP": "10.1.0.1"}, {"LOWCOMM_SECRET": SECRET}
    done = launch("-c", script.replace("/launch/node.sh", "launch/node.sh --dry-run"), *arguments, **pod, **secret)
    assert given(words(done.stdout.splitlines()[-1])) == [RECIPE, *FLAGS]


def test_skypilot(tools: Path, tmp_path: Path) -> None:
    done = launch("launch/skypilot.sh", "--regions", "gcp/a,aws/b", "--master", "10.0.0.1", "--dry-run", RECIPE, *FLAGS)
    assert done.returncode == 0, done.stderr
    is_loaded_as_given(tmp_path)
    sky = {"LOWCOMM_RECIPE_LOADED": "1", "SKYPILOT_NUM_GPUS_PER_NODE": "8", "SKYPILOT_NODE_IPS": "10.2.0.1"}
    sky |= {"SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_NODES": "1"}
    script = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())["run"]
    script = script.replace("launch/node.sh", "launch/node.sh --dry-run")
    for line in done.stdout.splitlines()[1:]:
        options = words(line)
        env = dict(options[i + 1].split("=", 1) for i, word in enumerate(options) if word == "--env")
        there = launch("-c", f"set -e\n{script}", **sky, **env, LOWCOMM_SECRET=SECRET)
        assert there.returncode == 0, there.stderr
        assert given(words(there.stdout.splitlines()[-1])) == [RECIPE, *FLAGS]


@pytest.mark.parametrize("how", [("launch/federation/local.sh", "--clients", "2"), (*CLIENT, "--client", "0")])
def test_a_federation(how: tuple[str, ...], tools: Path, tmp_path: Path) -> None:
    done = launch(*how, "--dry-run", RECIPE, *FLAGS)
    assert done.returncode == 0, done.stderr
    is_loaded_as_given(tmp_path)
    lines = [words(line) for line in done.stdout.splitlines() if "federation client" in line]
    assert len(lines) == (2 if "local" in how[0] else 1)
    for line in lines:
        assert line[line.index(RECIPE) : line.index(RECIPE) + 1 + len(FLAGS)] == [RECIPE, *FLAGS]


def test_words_survive_the_shells_of_other_machines() -> None:
    line = launch("-c", 'source launch/common.sh; quoted "$@"', "-", *FLAGS).stdout
    for shell in ("sh", "dash", "bash"):
        if shutil.which(shell):
            done = subprocess.run([shell, "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True)
            assert done.stdout.split("\0")[:-1] == FLAGS


@pytest.mark.parametrize("value", ["1\n2", "\x1b[31m8"])
def test_a_refusal_is_one_line_whatever_was_given(value: str) -> None:
    done = launch("launch/local.sh", "--islands", value, "x.py")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "\x1b" not in done.stderr
