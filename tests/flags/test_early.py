"""Slips are refused before torch is imported, with the flag that was meant; nothing that is legal is."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lowcomm.config import RunConfig
from lowcomm.flags.assign import part_fields
from lowcomm.flags.early import literals, refuse_early, unknown_flag
from lowcomm.flags.parse import parse_flags
from lowcomm.flags.parts import bases, known
from lowcomm.model import SHAPES
from lowcomm.recipe import find
from lowcomm.types import ConfigError
from tests.flags.test_parts import PLACES
from tests.support.runs import ROOT

RECIPE = find("diloco.py:smoke")[0]


def leaf_flags(config: object, prefix: str = "") -> Iterator[list[str]]:
    """Each field as its flag with its value."""
    assert dataclasses.is_dataclass(config)
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}".replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield [f"--{name}", repr(value)] if "(" in repr(value) else []
            yield from leaf_flags(value, f"{prefix}{field.name}.")
        elif isinstance(value, bool) and "resume" not in name and field.type == "bool":
            yield [f"--{name}"]
            above, dot, last = name.rpartition(".")
            yield [f"--{above}{dot}no-{last}"]
            yield [f"--no-{name}"]
        elif not isinstance(value, (tuple, dict)):
            yield [f"--{name}={value}"]


def test_no_legal_flag_is_refused() -> None:
    """Of the configuration, and of every method in its place."""
    sections = ("--island ", "--data ", "--model ", "--inner ", "--sync ", "--eval ", "--checkpoint ")
    given = [w for w in leaf_flags(RunConfig()) if not " ".join(w).startswith(sections)]
    for path, parts in PLACES.items():
        for part in parts:
            given += [[f"--{path}", repr(part)], *leaf_flags(part, f"{path}.")]
    assert len(given) > 500
    refuse_early(RECIPE, [word for words in given for word in words])


def test_every_known_part_is_known_early() -> None:
    for path, hint, _ in part_fields(RunConfig()):
        for name in (n for base in bases(hint) for n in known(base)):
            refuse_early(RECIPE, [f"--{path}", f"{name}()"])
    assert literals("model.preset") == list(SHAPES)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sync.evry", "3"], "--sync.every"),
        (["--every", "3"], "--sync.every"),
        (["--lr", "3"], "--inner.optimizer.lr or --sync.outer.lr"),
        (["--steps", "many"], "a whole number"),
        (["--steps"], "no value"),
        (["--steps", "3", "4"], "2 values (3 4)"),
        (["--island.kind", "fsdpx"], "ddp or fsdp"),
        (["--tensorboard", "False"], "--no-tensorboard for off"),
        (["--no-steps"], "Fix: --steps"),
        (["--sync.codec", "Int5"], "Fix: write Int"),
        (["--sync.codec", "Int4("], "NAME(FIELD=VALUE, ...)"),
        (["--data.source"], "wants a part: one of Csv"),
        (["--sync.codec.blok", "3"], "is not a flag"),
        (["stray"], "'stray' is no flag"),
    ],
)
def test_slips(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        refuse_early(RECIPE, words)
    message = str(refused.value)
    assert said in message
    assert "\n" not in message and "Fix: " in message


def test_recipes_with_classes_of_their_own_are_left_alone(tmp_path: Path) -> None:
    for text in ("class Mine: ...\n", "from mine import Codec\n", "from .mine import x\n", "import numpy\n"):
        (tmp_path / "own.py").write_text(text, encoding="utf-8")
        refuse_early(tmp_path / "own.py", ["--sync.codec.mine", "3"])
    (tmp_path / "own.py").write_text("from lowcomm.codec import Int4\nimport os\n", encoding="utf-8")
    with pytest.raises(ConfigError):
        refuse_early(tmp_path / "own.py", ["--sync.codec.mine", "3"])


def test_what_only_the_recipe_knows_is_refused_after_it() -> None:
    with pytest.raises(ConfigError, match=r"sync\.codec is Fp32, which has no fields\. Fix: .*\(k=\.\.\.\)"):
        parse_flags(RunConfig(), ["--sync.codec.k", "3"], "train")


@pytest.mark.parametrize("flag", ["--checkpoint.no-export", "--no-checkpoint.export"])
def test_both_spellings_of_off(flag: str) -> None:
    config = parse_flags(RunConfig(), [flag, "--no-tensorboard"], "train")
    assert (config.checkpoint.export, config.tensorboard) == (False, False)


def test_the_message_of_a_flag_that_nothing_is_like() -> None:
    assert unknown_flag("zzzzzz") == "--zzzzzz is not a flag. Fix: --help lists them all"


def test_help_and_refusals_do_not_import_torch() -> None:
    """Seconds of CPU otherwise, of which a person waits for each."""
    commands = [
        *(["--help"], ["--version"], ["fly"], ["recipes"], ["plan", "--bad"], ["plan", "--preset", "x"]),
        *(["train"], ["train", "nosuch.py:x"], ["train", "diloco.py:smoke", "--sync.evry", "3"]),
        *(["simulate", "diloco.py:smoke", "--steps", "x"], ["recipes", "check", "diloco.py:smoke", "--lr", "1"]),
        *(
            ["sweep", "diloco.py:smoke", "--sizes", "32", "--bad"],
            ["sweep"],
            ["train", "ddp.py:smoke", "--sync.codec", "x"],
        ),
    ]
    code = f"import sys\nfrom lowcomm.cli import main\nprint([main(c) for c in {commands!r}], 'torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == f"{[0, 0, 2, 0, *[2] * 10]} False", done.stderr
