"""Forms: fields are flags, and a form's configuration is that of the command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from lowcomm import recipe
from lowcomm.codec import ErrorFeedback, Int4
from lowcomm.config_file import to_dict
from lowcomm.flags.parse import parse_flags
from lowcomm.flags.parts import build
from lowcomm.flags.spec import parse
from lowcomm.flags.write import written
from lowcomm.types import ConfigError
from lowcomm.ui.field_docs import class_doc, field_docs
from lowcomm.ui.form import free_name, judge, named
from lowcomm.ui.recipes import offered
from lowcomm.ui.rows import Row, flag, rows_of
from tests import methods

RUNS = Path("runs")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("group", ["CODECS", "OUTERS", "SCHEDULES", "INNERS", "OBJECTIVES", "SAMPLINGS", "MECHANISMS"])
def test_a_part_is_read_back_from_what_is_written(group: str) -> None:
    parts = getattr(methods, group, ())
    for part in parts:
        base = next(c for c in type(part).__mro__[::-1] if c.__module__.startswith("lowcomm."))
        assert build(parse(written(part), "x"), base, "x") == part, written(part)


def typed(config: object) -> list[str]:
    """Every field typed again: parts first."""
    rows = sorted(rows_of(config), key=lambda row: (row.kind != "part", row.path.count(".")))
    return [
        word for row in rows if row.kind != "words" or row.value not in ("None", "") for word in flag(row, row.value)
    ]


def test_every_field_typed_again_changes_nothing(long: bool) -> None:
    names = [info.name for info in recipe.packaged()]
    shown = names if long else ["diloco.py:pretrain", "fed_lora.py:smollm2_sparse", "streaming.py:sparse"]
    for name in shown:
        config = recipe.load(name)
        if any("|" in row.value or "Mixed" in row.value for row in rows_of(config) if "aggregator" in row.path):
            continue  # rules behind a mixing are written in recipes only
        assert to_dict(parse_flags(config, typed(config), "x")) == to_dict(config), name


def test_every_row_says_what_it_is() -> None:
    rows = {row.path: row for row in rows_of(recipe.load("diloco.py:smoke"))}
    assert rows["sync.every"].doc == "Inner steps per round (H)." and rows["sync.every"].kind == "number"
    assert rows["transport"].choices == ("collective", "simulated") and rows["tensorboard"].kind == "switch"
    assert rows["sync.codec"].kind == "part" and "ErrorFeedback" in rows["sync.codec"].choices
    assert rows["sync.privacy"].choices[-1] == "None" and rows["sync.privacy"].chosen == "None"
    assert rows["sync.outer.lr"].depth == 1 and rows["sync.local_steps"].kind == "words"
    assert not {"run_dir", "resume", "store"} & set(rows)
    assert all(row.doc for row in rows.values() if row.kind not in ("part", "switch"))


def test_nothing_changed_is_the_recipe() -> None:
    judged = judge("diloco.py:smoke", {}, RUNS)
    assert judged.arguments == ["train", "diloco.py:smoke"] and not judged.problems
    assert judged.config == recipe.load("diloco.py:smoke")


def test_a_form_is_its_command_line() -> None:
    given = {
        "sync.codec": "ErrorFeedback(codec=TopK(k=32) | Int4())",
        "sync.codec.beta": "0.5",
        "islands": "3",
        "name": "mine",
        "tensorboard": "False",
        "checkpoint.export": "False",
        "sync.local_steps": "8 16 16",
        "data.source": "TextFiles(glob='a b/*.txt')",
    }
    judged = judge("diloco.py:smoke", given, RUNS)
    assert not judged.problems and judged.given == given
    config = judged.config
    assert (config.islands, config.tensorboard, config.checkpoint.export) == (3, False, False)
    assert config.sync.local_steps == (8, 16, 16)
    again = parse_flags(recipe.load("diloco.py:smoke"), judged.flags, "x")
    assert to_dict(again) == to_dict(config)
    assert "--sync.codec 'ErrorFeedback(codec=TopK(k=32) | Int4())'" in judged.command
    assert "--checkpoint.no-export" in judged.command and "--no-tensorboard" in judged.command


def test_each_wrong_field_has_its_own_line() -> None:
    given = {"steps": "many", "sync.every": "0", "sync.codec": "Int5()", "inner.optimizer.lr": "-1", "seed": "4"}
    judged = judge("diloco.py:smoke", given, RUNS)
    assert set(judged.problems) == {"steps", "sync.every", "sync.codec", "inner.optimizer.lr"}
    for path, message in judged.problems.items():
        assert path in message.replace("-", "_").removeprefix("__") and "Fix: " in message and "\n" not in message
    assert judged.config.seed == 4


def test_what_does_not_go_together_stands_at_the_field_that_names_it() -> None:
    judged = judge("diloco.py:smoke", {"batched": "True"}, RUNS)
    assert list(judged.problems) == ["batched"] and "pass --transport simulated" in judged.problems["batched"]
    assert not judge("diloco.py:smoke", {"batched": "True", "transport": "simulated"}, RUNS).problems
    secret = judge("attacks.py:smoke", {}, RUNS)
    assert "pass --sync.allow-attack" in secret.problems["sync.attack"]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("sync.every", "--help"), ("name", "--help"), ("sync.local_steps", "4 --help"), ("sync.codec", "--help"),
        ("tensorboard", "--help"), ("sync.codec", "__import__('os').system('touch x')"), ("name", "a\nb"),
        ("data.source", "TextFiles(glob=open('x'))"), ("sync.local_steps", "'"), ("transport", "tcp"), ("name", "../x"),
    ],
)  # fmt: skip
def test_no_text_is_more_than_a_value(path: str, text: str, tmp_path: Path) -> None:
    judged = judge("diloco.py:smoke", {path: text}, RUNS)
    if text == "--help" and path == "name":
        assert judged.config.name == "--help"
    else:
        assert path in judged.problems
    assert not any(tmp_path.iterdir())


def test_a_part_is_chosen_from_its_list() -> None:
    judged = judge("diloco.py:smoke", {}, RUNS, ("sync.codec", "ErrorFeedback"))
    assert judged.given == {"sync.codec": "ErrorFeedback(codec=Int4())"} and not judged.problems
    paths = {row.path for row in judged.rows}
    assert {"sync.codec.beta", "sync.codec.codec", "sync.codec.codec.block"} <= paths
    deeper = judge("diloco.py:smoke", {**judged.given, "sync.codec.codec.block": "64", "sync.codec.gone": "1"}, RUNS)
    assert deeper.config.sync.codec == ErrorFeedback(codec=Int4(block=64))
    assert "sync.codec.gone" not in deeper.given and deeper.before["sync.codec.codec.block"] == "256"
    back = judge("diloco.py:smoke", deeper.given, RUNS, ("sync.codec", "Fp32"))
    assert back.config.sync.codec == recipe.load("diloco.py:smoke").sync.codec
    assert "sync.codec.codec.block" not in back.given


def test_a_run_is_below_the_directory_of_runs(tmp_path: Path) -> None:
    assert judge("diloco.py:smoke", {"name": "a"}, RUNS).flags == ["--name", "a"]
    assert judge("diloco.py:smoke", {"name": "a"}, Path("other")).flags[-2:] == ["--run-dir", "other/a"]
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "config.json").write_text("{}", encoding="utf-8")
    taken = judge("diloco.py:smoke", {"name": "a"}, RUNS).problems["name"]
    assert "already holds a run" in taken and "such as a-2" in taken
    (tmp_path / "runs" / "a-2").mkdir()
    assert (free_name("a", RUNS), free_name("a-2", RUNS), free_name("b", RUNS)) == ("a-3", "a-3", "b")


def test_a_run_in_a_store_is_for_a_terminal() -> None:
    assert "started in a terminal" in judge("store.py:smoke", {}, RUNS).problems[""]


def test_recipes_of_this_directory_are_offered(tmp_path: Path) -> None:
    mine = "from lowcomm.config import RunConfig\n\ndef quick() -> RunConfig:\n    return RunConfig(steps=7)\n"
    (tmp_path / "mine.py").write_text(mine + "\ndef other():\n    return 1\n", encoding="utf-8")
    (tmp_path / "broken.py").write_text("def f(", encoding="utf-8")
    (tmp_path / "ddp.py").write_text(mine, encoding="utf-8")
    names = [info.name for info in offered()]
    assert "mine.py:quick" in names and "mine.py:other" not in names
    assert "ddp.py:quick" in names and "ddp.py:smoke" not in names  # `lowcomm train` would take this file
    assert judge("mine.py:quick", {}, RUNS).config.steps == 7
    (tmp_path / "mine.py").write_text(mine.replace("steps=7", "steps=11"), encoding="utf-8")
    assert judge("mine.py:quick", {}, RUNS).config.steps == 11
    (tmp_path / "mine.py").write_text(
        "import sys\n" + mine.replace("return", "sys.exit(3)\n    return"), encoding="utf-8"
    )
    with pytest.raises(ConfigError, match="ends the process"):
        judge("mine.py:quick", {}, RUNS)
    for wrong in ("/etc/passwd", "../mine.py:quick", "mine.py:other", "nothing.py:smoke", ""):
        with pytest.raises(ConfigError, match="one of those listed"):
            judge(wrong, {}, RUNS)


def test_the_field_that_a_message_begins_with() -> None:
    paths = ["sync.every", "sync", "sync.every_s", "islands"]
    assert named("sync.every = 0 is not allowed", paths) == "sync.every"
    assert named("sync.every_s = 0", paths) == "sync.every_s"
    assert named("--islands has no value", paths) == "islands"
    assert named("something else", paths) == ""


def test_docstrings_are_read() -> None:
    @dataclasses.dataclass(frozen=True)
    class Above:
        a: int = 1
        """First,
        in two lines."""

    @dataclasses.dataclass(frozen=True)
    class Below(Above):
        """What it is."""

        b: int = 2
        c: int = 3
        """Third."""

    assert field_docs(Below) == {"a": "First, in two lines.", "c": "Third."}
    assert class_doc(Below) == "What it is."


def test_a_switch_has_two_values() -> None:
    row = Row(path="checkpoint.export", kind="switch", value="True", doc="")
    assert flag(row, "True") == ["--checkpoint.export"] and flag(row, "False") == ["--checkpoint.no-export"]
    with pytest.raises(ConfigError, match="True or False"):
        flag(row, "yes")
