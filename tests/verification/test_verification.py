"""Hashes of steps, audits and the referee: what they find, in how many messages, and whom they name."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowcomm.cli import main
from lowcomm.config import RunConfig, SyncConfig
from lowcomm.exchange.gossip import Gossip
from lowcomm.island import PlainIsland
from lowcomm.island.plain import Batch
from lowcomm.report.html import write_report
from lowcomm.schedule import EveryStep
from lowcomm.trainer import train
from lowcomm.types import ConfigError
from lowcomm.verification import merkle
from lowcomm.verification.transcript import path_of, read
from tests.support import runs

ISLANDS, EVERY, STEPS = 2, 4, 12
CHEAT_ISLAND, CHEAT_STEP = 1, 6


@given(st.integers(1, 70), st.data())
def test_the_first_difference_is_found_in_log2_messages(count: int, data: st.DataObject) -> None:
    ours = [bytes([i]) for i in range(count)]
    at = data.draw(st.sets(st.integers(0, count - 1), max_size=3))
    theirs = [b"x" if i in at else leaf for i, leaf in enumerate(ours)]
    found, compared = merkle.first_difference(ours, theirs)
    assert found == min(at, default=None)
    assert compared <= 1 + math.ceil(math.log2(count)) if at else compared == 1

    def chain(leaves: Sequence[bytes]) -> list[bytes]:
        links = [b""]
        for leaf in leaves:
            links.append(merkle.link(links[-1], leaf))
        return links[1:]

    found, compared = merkle.first_break(chain(ours), chain(theirs))
    assert found == min(at, default=None)
    assert compared <= 1 + math.ceil(math.log2(count)) if at else compared == 1


def test_a_node_is_no_leaf() -> None:
    a, b = merkle.root_of([b"a"]), merkle.root_of([b"b"])
    assert merkle.root_of([b"a", b"b"]) != merkle.root_of([a + b])


class Runs:
    """An honest run, one of real processes, one that was stopped on the way, and one in which an island cheats."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.corpus = runs.write_corpus(directory)

    def config(self, name: str) -> RunConfig:
        return runs.small(self.corpus, self.directory / name, name=name, step_hashes=True, steps=STEPS)


def cheat(patch: pytest.MonkeyPatch) -> None:
    """One island adds a little to one gradient in one step; simulated islands take turns."""
    honest, calls = PlainIsland.backward, [0]

    def backward(self: PlainIsland, batches: Sequence[Batch]) -> float:
        loss = honest(self, batches)
        step, island = divmod(calls[0], ISLANDS)
        calls[0] += 1
        if (island, step + 1) == (CHEAT_ISLAND, CHEAT_STEP):
            grad = self.params[0].grad
            assert grad is not None
            grad.view(-1)[0] += 0.5
        return loss

    patch.setattr(PlainIsland, "backward", backward)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    place = Runs(tmp_path_factory.mktemp("runs"))
    assert train(place.config("honest")) == 0
    halves = place.config("halves")
    assert train(replace(halves, checkpoint=replace(halves.checkpoint, stop_at_step=6))) == 3
    assert train(replace(halves, resume=True)) == 0
    assert train(replace(place.config("plain"), step_hashes=False, steps=EVERY)) == 0
    with pytest.MonkeyPatch.context() as patch:
        cheat(patch)
        assert train(place.config("cheat")) == 0
    return place


def leaves(directory: Path, island: int) -> list[tuple[str, int, bytes]]:
    found = read(directory, island)
    return [(e.kind, e.step, e.leaf) for s in found.segments for e in s.entries]


def test_transcripts_do_not_depend_on_a_stop(made: Runs) -> None:
    for island in range(ISLANDS):
        honest = leaves(made.directory / "honest", island)
        assert len(honest) == STEPS + STEPS // EVERY
        assert leaves(made.directory / "halves", island) == honest
        chains = [read(made.directory / name, island).chain for name in ("honest", "halves")]
        assert chains[0] == chains[1]
    assert path_of(made.directory / "honest", 0).stat().st_mode & 0o077 == 0


@pytest.mark.long
def test_transcripts_of_real_processes_are_those_of_a_simulation(made: Runs, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from pathlib import Path\nfrom tests.support.runs import small\n"
        f"def hashed():\n    return small(Path({str(made.corpus)!r}), None, step_hashes=True)\n",
        encoding="utf-8",
    )
    arguments = ["train", f"{recipe}:hashed", "--transport", "collective", "--run-dir", str(tmp_path / "real")]
    assert runs.run_islands(arguments, ISLANDS, tmp_path / "log") == [0, 0], (tmp_path / "log").read_text()
    for island in range(ISLANDS):
        assert leaves(tmp_path / "real", island) == leaves(made.directory / "honest", island)
        assert read(tmp_path / "real", island).chain == read(made.directory / "honest", island).chain


def test_roots_are_in_log_and_summary(made: Runs) -> None:
    directory = made.directory / "honest"
    rows = [e for e in runs.metrics(directory) if e["event"] == "sync" and e["island"] == 1]
    assert [e["steps_root"] for e in rows] == [s.root.hex() for s in read(directory, 1).segments]
    assert runs.summary(directory)["step_hashes"]["chain"] == read(directory, 0).chain.hex()


def test_roots_are_in_the_report(made: Runs, tmp_path: Path) -> None:
    page = write_report([made.directory / "honest"], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Merkle roots of 6 rounds and islands" in page
    assert read(made.directory / "honest", 1).segments[-1].root.hex() in page
    plain = write_report([made.directory / "plain"], tmp_path / "plain.html").read_text(encoding="utf-8")
    assert "Merkle" not in plain


def test_off_costs_nothing(made: Runs) -> None:
    assert not (made.directory / "plain" / "steps").exists()
    assert runs.summary(made.directory / "plain")["step_hashes"] is None


def test_an_audit_of_an_honest_run_finds_nothing(made: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(made.directory / "halves"), "--rounds", "2", "--seed", "1"]) == 0
    assert "all hashes agree" in capsys.readouterr().out


def test_an_audit_finds_the_first_wrong_step(made: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(made.directory / "cheat"), "--rounds", "3"]) == 1
    said = capsys.readouterr().out
    assert f"island {CHEAT_ISLAND}, inner step {CHEAT_STEP} is the first that differs" in said


def test_an_audit_sees_a_checkpoint_that_was_changed(
    made: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    from lowcomm import checkpoint

    run = tmp_path / "run"
    shutil.copytree(made.directory / "honest", run)
    parts = checkpoint.load(run / "checkpoints", "000001", 0)
    tensors = parts["island"][0]
    name = next(n for n in tensors if n.startswith("model."))
    tensors[name] = tensors[name] + 1
    session = checkpoint.read_manifest(run / "checkpoints" / "000001" / "island-00000")["session"]
    checkpoint.save(run / "checkpoints", "000001", 0, parts, session)
    assert main(["audit", str(run), "--rounds", "3"]) == 1
    assert "checkpoint 000001: it is not the state" in capsys.readouterr().out
    assert load_file and save_file


def test_the_referee_names_the_liar(made: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    honest, cheated = str(made.directory / "honest"), str(made.directory / "cheat")
    assert main(["verify", honest, str(made.directory / "halves")]) == 0
    assert "both say the same" in capsys.readouterr().out
    for pair in ([honest, cheated], [cheated, honest]):
        assert main(["verify", *pair]) == 1
        said = capsys.readouterr().out
        assert f"island {CHEAT_ISLAND}, inner step {CHEAT_STEP} is the first that differs" in said
        assert f"wrong is {cheated}" in said and "lowcomm audit RUN --operators" in said


def test_the_referee_names_the_operator(made: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    pair = [made.directory / "honest", made.directory / "cheat"]
    for run in pair:
        asked = ["audit", str(run), "--operators", str(CHEAT_STEP), "--island", str(CHEAT_ISLAND)]
        assert main(asked) == 0
    assert main(["verify", *map(str, pair)]) == 1
    assert "operators agree: the state was changed outside of them" in capsys.readouterr().out
    path = pair[1] / "steps" / f"operators-{CHEAT_ISLAND:05d}-{CHEAT_STEP:08d}.jsonl"
    rows = [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines()]
    at = next(i for i, row in enumerate(rows) if "mm" in row["operator"])
    for row in rows[at:]:
        row["hash"] = "00" * 32
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert main(["verify", *map(str, pair)]) == 1
    said = capsys.readouterr().out
    assert f"operator {at}, {rows[at]['operator']}, is the first that differs" in said
    assert f"wrong is {pair[1]}" in said.splitlines()[-1]


def test_a_transcript_that_was_changed_is_no_transcript(made: Runs, tmp_path: Path) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(made.directory / "honest", run)
    path = path_of(run, 0)
    rows = path.read_text(encoding="utf-8").splitlines()
    at = next(i for i, row in enumerate(rows) if '"step", "step"' in row or '"kind": "step"' in row)
    values = json.loads(rows[at])
    rows[at] = json.dumps({**values, "leaf": "00" * 32})
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    assert main(["audit", str(run)]) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batched": True}, "batched"),
        ({"sync": SyncConfig(every=EVERY, schedule=EveryStep())}, "averaged gradients"),
        ({"sync": SyncConfig(every=EVERY, exchange=Gossip())}, "rounds in common"),
    ],
)
def test_runs_without_rounds_of_their_own_are_refused(change: dict[str, object], words: str, tmp_path: Path) -> None:
    config = replace(runs.small(runs.write_corpus(tmp_path), tmp_path / "run", step_hashes=True), **change)
    with pytest.raises(ConfigError, match=words) as error:
        train(config)
    assert "step_hashes = True" in str(error.value) and not (tmp_path / "run").exists()


def test_bad_input_of_the_commands(made: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    honest, plain = made.directory / "honest", made.directory / "plain"
    other = tmp_path / "other"
    assert train(runs.small(made.corpus, other, steps=STEPS, step_hashes=True, seed=1)) == 0
    capsys.readouterr()
    for arguments, words in (
        (["audit", str(tmp_path / "none")], "can't be read"),
        (["audit", str(plain)], "step_hashes = False"),
        (["audit", str(honest), "--rounds", "4"], "1 to 3"),
        (["audit", str(honest), "--rounds", "0"], "1 to 3"),
        (["audit", str(honest), "--operators", "13"], "1 to 12"),
        (["audit", str(honest), "--operators", "1", "--island", "2"], "0 to 1"),
        (["verify", str(honest), str(other)], "seed of"),
    ):
        assert main(arguments) == 2, arguments
        told = capsys.readouterr().err
        assert words in told and "Fix: " in told, told


def test_another_kind_of_device_is_refused(made: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(made.directory / "honest", run)
    for island in range(ISLANDS):
        path = path_of(run, island)
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(torch.backends.cpu.get_cpu_capability(), "another"), encoding="utf-8")
    assert main(["verify", str(made.directory / "honest"), str(run)]) == 2
    assert "device of" in capsys.readouterr().err
