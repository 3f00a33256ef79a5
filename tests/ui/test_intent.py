"""Sentences: what they set, what they leave, and that they never do more."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowcomm import recipe
from lowcomm.types import ConfigError
from lowcomm.ui.intent import understand
from lowcomm.ui.intent_codecs import CODECS
from lowcomm.ui.intent_recipes import METHODS
from lowcomm.ui.sentence import Sentence, count

RUNS = Path("runs")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_sentence_of_the_page() -> None:
    found = understand("8 islands over 50 Mbit/s, int4, 2000 steps, SmolLM2 LoRA", RUNS)
    assert found.judged.reference == "fed_lora.py:smollm2"
    assert found.judged.given == {"islands": "8", "steps": "2000"}
    assert found.because["recipe"] == "SmolLM2 LoRA" and found.because["islands"] == "8 islands"
    assert any("codec is that already" in note for note in found.notes)
    assert any("50 Mbit/s" in note and "no field for its link" in note for note in found.notes)
    assert found.left == ()


@pytest.mark.parametrize(
    ("text", "reference", "fields"),
    [
        ("four islands, sync every 50 steps", "diloco.py:pretrain_cpu", {"islands": "4", "sync.every": "50"}),
        ("H=64 in 2 bits", "diloco.py:pretrain_cpu",
         {"sync.every": "64", "sync.codec": "ErrorFeedback(codec=TwoBit())"}),
        ("int8 without error feedback", "diloco.py:pretrain_cpu", {"sync.codec": "Int8()"}),
        ("top-k with zstd", "diloco.py:pretrain_cpu", {"sync.codec": "ErrorFeedback(codec=TopK()) | Zstd()"}),
        ("a quick gossip run for 2k steps, seed 7", "gossip.py:smoke", {"steps": "2000", "seed": "7"}),
        ("twelve clients with FedProx, lr 3e-4", "fed_clients.py:fedprox",
         {"islands": "12", "inner.optimizer.lr": "0.0003"}),
        ("LoRA rank 4", "fed_lora.py:fedit", {"model.tuning.rank": "4", "sync.aggregator.rank": "4"}),
        ("150M model on GPUs, batch size 4, context 512", "diloco.py:pretrain",
         {"device": "cuda", "data.batch_size": "4", "data.seq_len": "512"}),
        ("text in books/*.txt, named books", "diloco.py:pretrain_cpu",
         {"data.source": "TextFiles(glob='books/*.txt')", "name": "books"}),
        ("rows from 'my data/a.jsonl'", "diloco.py:pretrain_cpu", {"data.source": "JsonLines(glob='my data/a.jsonl')"}),
        ("evaluate every 100 steps, save every 5 minutes", "diloco.py:pretrain_cpu",
         {"eval.every": "100", "checkpoint.every_s": "300"}),
        ("sync.every=40 --inner.clip-norm=2 sync.codec='Int4()'", "diloco.py:pretrain_cpu",
         {"sync.every": "40", "inner.clip_norm": "2", "sync.codec": "Int4()"}),
        ("outer lr 0.5, momentum 0.9, simulated", "diloco.py:pretrain_cpu",
         {"sync.outer.lr": "0.5", "sync.outer.momentum": "0.9", "transport": "simulated"}),
    ],
)  # fmt: skip
def test_sentences(text: str, reference: str, fields: dict[str, str]) -> None:
    found = understand(text, RUNS)
    already = {note.split(": ")[1].split(" is ")[0] for note in found.notes if note.endswith("already")}
    assert found.judged.reference == reference
    assert {k: v for k, v in fields.items() if k not in already} == found.judged.given
    assert found.left in ((), ("rows",))


def test_a_link_and_the_time_of_a_step_give_h() -> None:
    found = understand("150m model, 4 islands, 50 Mbit/s, round trip 40 ms, 1.5 s per step, int4", RUNS)
    slow = understand("150m model, 4 islands, 5 Mbit/s, round trip 40 ms, 1.5 s per step, int4", RUNS)
    assert int(slow.judged.given["sync.every"]) > int(found.judged.given.get("sync.every", "32"))
    assert any("predicted" in note for note in found.notes)
    assert "150" not in " ".join(found.left) and found.left == ()
    alone = understand("150m model over 50 Mbit/s", RUNS)
    assert any("say how long an inner step takes" in note for note in alone.notes)
    assert "sync.every" not in alone.judged.given
    fixed = understand("150m model, every 100 steps, 50 Mbit/s, 1.5 s a step", RUNS)
    assert any("with H = 100" in note for note in fixed.notes)


def test_what_is_not_understood_is_said() -> None:
    found = understand("8 islands with flux capacitors, please", RUNS)
    assert found.judged.given == {"islands": "8"} and found.left == ("flux", "capacitors")


def test_the_open_recipe_is_kept() -> None:
    assert understand("int4, 3 clients", RUNS, "streaming.py:fp32").judged.reference == "streaming.py:fp32"
    assert understand("int4, gossip", RUNS, "streaming.py:fp32").judged.reference == "gossip.py:dsgd"
    with pytest.raises(ConfigError, match="one of those listed"):
        understand("int4", RUNS, "/etc/passwd")


def test_what_is_wrong_is_said_before_anything_runs() -> None:
    found = understand("0 islands", RUNS)
    assert "1 or more" in found.judged.problems["islands"]


def test_every_recipe_and_codec_that_rules_name_is_there() -> None:
    names = {info.name for info in recipe.packaged()}
    assert {reference for _, reference in METHODS} <= names
    from lowcomm import codec

    assert all(hasattr(codec, name) for _, name, _ in CODECS)


@pytest.mark.parametrize("text", ["", "   ", "x" * 2001])
def test_a_sentence_has_a_length(text: str) -> None:
    with pytest.raises(ConfigError, match="1 to 2000 characters"):
        understand(text, RUNS)


@given(st.text(max_size=80))
@settings(max_examples=30)
def test_any_text_is_read(text: str) -> None:
    sentence = Sentence(text=text.replace("\0", " "))
    for match in sentence.take(r"\d+"):
        sentence.drop(match)
    assert len(sentence.left) == len(sentence.text) and not any(c.isdecimal() and c.isascii() for c in sentence.left)


@pytest.mark.parametrize(
    "text",
    ["__import__('os').system('touch x')", "$(touch x)", "; touch x", "{{ 7*7 }}", "name=$(touch x)", "--help", "-h",
     "data.source=\"TextFiles(glob=open('x','w'))\"", "named ../../x", "run_dir=/tmp/x resume=True store=/tmp/x"],
)  # fmt: skip
def test_no_text_is_run(text: str, tmp_path: Path) -> None:
    judged = understand(text, RUNS).judged
    assert not any(tmp_path.iterdir())
    assert not {"run_dir", "resume", "store"} & set(judged.given)
    assert all(word != "x" for word in judged.flags)


def test_numbers() -> None:
    assert [count(t) for t in ("2000", "2,000", "2k", "1.5 M", "a hundred", "Twelve", "1e3", "3 million")] == [
        2000, 2000, 2000, 1_500_000, 100, 12, 1000, 3_000_000,
    ]  # fmt: skip
