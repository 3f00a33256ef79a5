"""Conversations: template, which tokens are learnt, windows, loss by answer tokens everywhere, bad rows."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from torch import nn

from lowcomm.cli import main
from lowcomm.config import CheckpointConfig, EvalConfig, RunConfig, SyncConfig
from lowcomm.data import (
    Bytes,
    DataConfig,
    HFTokenizer,
    Instructions,
    JsonLines,
    Messages,
    NaturalId,
    Parquet,
    build_data,
)
from lowcomm.data.bytes_tokenizer import BytesTokenizer, byte_characters
from lowcomm.data.chat import chat_document
from lowcomm.data.source import Document, Message
from lowcomm.data.template import Template
from lowcomm.data.tokenizer import CHATML
from lowcomm.federated import mean_loss
from lowcomm.island import AdamW, BatchedIslands, InnerConfig, PlainIsland, PrivateIsland
from lowcomm.model import ModelConfig, build_model, token_losses
from lowcomm.trainer import train
from lowcomm.types import IGNORED, ConfigError, LowcommError, counted
from tests.support import runs

THREE = (
    Message("system", "Be brief."),
    Message("user", "What is 1 + 1?"),
    Message("assistant", "It is 2."),
    Message("user", "And 2 + 2?"),
    Message("assistant", "Four, née vier."),
)


def document(*messages: Message) -> Document:
    return chat_document("a.jsonl", "a.jsonl line 1", messages, "")


@pytest.fixture(scope="module")
def chatml_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer with ChatML's special tokens and a few merges, as SmolLM2's is."""
    from transformers import PreTrainedTokenizerFast

    directory = tmp_path_factory.mktemp("tokenizer")
    characters = byte_characters()
    merges = [("Ċ", "I"), ("Ġ", "i"), ("I", "t"), ("t", "Ċ"), ("Ġi", "s")]
    vocabulary = {c: i for i, c in enumerate([*characters, *("".join(m) for m in merges)])}
    backend = Backend(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        bos_token="<|im_start|>",
        additional_special_tokens=["<|other|>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = (
        "{% for m in messages %}"
        "{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nHi<|im_end|>\n{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    tokenizer.save_pretrained(directory)
    return directory


def template_of(directory: Path) -> tuple[Template, Any]:
    from transformers import AutoTokenizer

    own = HFTokenizer(path=directory).load(lambda: iter(()), directory)
    return Template(own, "tokenizer"), AutoTokenizer.from_pretrained(directory)


def answers_of(ids: np.ndarray, learnt: np.ndarray) -> list[list[int]]:
    """The runs of learnt tokens."""
    found: list[list[int]] = []
    for before, now, token in zip([False, *learnt[:-1]], learnt, ids.tolist(), strict=True):
        if now and not before:
            found.append([])
        if now:
            found[-1].append(token)
    return found


@pytest.mark.parametrize("messages", [THREE, THREE[1:], THREE[1:3], THREE[:3]])
def test_ids_are_those_of_transformers_and_answers_are_what_a_model_must_write(
    chatml_directory: Path, messages: tuple[Message, ...]
) -> None:
    template, theirs = template_of(chatml_directory)
    ids, learnt = template.encode(template.render(document(*messages)))
    turns = [{"role": m.role, "content": m.content} for m in messages]
    whole = theirs.apply_chat_template(turns, tokenize=True, return_dict=False)
    assert ids.tolist() == whole[: len(ids)]
    assert theirs.decode(whole[len(ids) :]) == "\n"  # after the last end of turn
    said = [m.content + "<|im_end|>" for m in messages if m.role == "assistant"]
    assert [theirs.decode(a) for a in answers_of(ids, learnt)] == said
    for i, message in enumerate(messages):
        if message.role == "assistant":
            prompt = theirs.apply_chat_template(turns[:i], tokenize=True, return_dict=False, add_generation_prompt=True)
            assert ids[: len(prompt)].tolist() == prompt and learnt[len(prompt)] and not learnt[len(prompt) - 1]


PARTS = [*"aI t\né漢<>|", "<|im_end|>", "<|im_start|>assistant\n"]
TEXTS = st.lists(st.sampled_from(PARTS), min_size=1, max_size=8).map("".join).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3), st.booleans())
def test_answers_of_any_text(pairs: list[tuple[str, str]], bytes_only: bool) -> None:
    """No text of a turn can end it: what is learnt is each answer and one end-of-text, whatever they spell."""
    tokenizer = BytesTokenizer()
    template = Template(tokenizer, "tokenizer")
    pairs = [(ask + "<|endoftext|>" * bytes_only, answer + "<|endoftext|>" * bytes_only) for ask, answer in pairs]
    messages = [m for ask, answer in pairs for m in (Message("user", ask), Message("assistant", answer))]
    ids, learnt = template.encode(template.render(document(*messages)))
    assert (ids == tokenizer.end_of_text_id).sum() == 2 * len(pairs)
    found = answers_of(ids, learnt)
    assert [a[-1] for a in found] == [256] * len(pairs)
    assert [bytes(a[:-1]).decode() for a in found] == [answer for _, answer in pairs]


def test_special_tokens_in_a_text_stay_text(chatml_directory: Path) -> None:
    template, theirs = template_of(chatml_directory)
    ids, learnt = template.encode(
        template.render(document(Message("user", "a<|im_end|>é"), Message("assistant", "né <|other|><|im_end|> It")))
    )
    assert (ids == theirs.eos_token_id).sum() == 3  # system, user, assistant
    (answer,) = answers_of(ids, learnt)
    assert theirs.decode(answer) == "né <|other|><|im_end|> It<|im_end|>"
    assert answer[-1] == theirs.eos_token_id and theirs.eos_token_id not in answer[:-1]


def test_a_template_that_loses_turns_is_refused(chatml_directory: Path) -> None:
    template, _ = template_of(chatml_directory)
    template.source = "{% for m in messages %}{{ m['content'] if loop.last else '...' }};{% endfor %}"
    with pytest.raises(ConfigError, match=r"leaves out the text of message 1 of a.jsonl line 1"):
        template.render(document(*THREE[1:]))
    template.source = "{{ raise_exception('no system here') }}"
    with pytest.raises(ConfigError, match=r"refuses a.jsonl line 1 .no system here"):
        template.render(document(*THREE))


def test_a_tokenizer_without_template_says_what_to_do(chatml_directory: Path) -> None:
    template, _ = template_of(chatml_directory)
    tokenizer = template._tokenizer
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match=r"data.chat_template is 'tokenizer'.*--data.chat-template chatml"):
        Template(tokenizer, "tokenizer")
    ids, learnt = Template(tokenizer, "chatml").encode(Template(tokenizer, "chatml").render(document(*THREE)))
    assert len(answers_of(ids, learnt)) == 2 and ids[-1] == tokenizer.end_of_text_id


def write_chats(path: Path, rows: int = 24, sites: int = 2) -> Path:
    """Sums, with answers of different lengths."""
    with path.open("w", encoding="utf-8") as f:
        for i in range(rows):
            messages = [
                {"role": "user", "content": f"{i}+{i}?"},
                {"role": "assistant", "content": f"{2 * i}" + "!" * (i % 5)},
            ]
            f.write(json.dumps({"messages": messages, "site": f"site{i % sites}", "n": i}) + "\n")
    return path


def data_of(path: Path, **changes: Any) -> DataConfig:
    base = DataConfig(
        source=JsonLines(glob=str(path), chat=Messages()), seq_len=64, batch_size=4, validation_fraction=0.25
    )
    return dataclasses.replace(base, **changes)


def test_windows_hold_one_conversation_each_and_learn_its_answer(tmp_path: Path) -> None:
    data = build_data(data_of(write_chats(tmp_path / "a.jsonl")), 2, 0)
    batches = [data.shard(i).next_batch() for i in (0, 1)] + data.validation_batches()
    for inputs, targets in batches:
        assert inputs.shape == targets.shape and inputs.dtype == targets.dtype == torch.int64
        for row, learnt in zip(inputs, targets, strict=True):
            text = bytes(t for t in row.tolist() if t < 256).decode()
            number = int(text.split("user\n")[1].split("+")[0])
            answer = bytes([t for t in learnt.tolist() if t not in (IGNORED, 256)]).decode()
            assert answer == f"{2 * number}" + "!" * (number % 5)
            assert learnt[learnt != IGNORED][-1] == 256
            shifted = learnt[:-1] != IGNORED
            assert torch.equal(row[1:][shifted], learnt[:-1][shifted])  # targets are inputs one token later
    assert data.shard(0).tokens == 0
    shard = data.shard(0)
    assert counted(shard.next_batch()[1]) == shard.tokens
    data.save_tokenizer(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text(encoding="utf-8") == CHATML


def test_an_exported_tokenizer_renders_what_was_trained_on(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    data = build_data(data_of(write_chats(tmp_path / "a.jsonl")), 1, 0)
    data.save_tokenizer(tmp_path / "export")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "export")
    inputs, _ = data.validation_batches()[0]
    text = bytes(t for t in inputs[0].tolist() if t < 256).decode()
    number = text.split("user\n")[1].split("+")[0]
    turns = [{"role": "user", "content": f"{number}+{number}?"}]
    prompt = theirs.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert inputs[0, : len(prompt)].tolist() == prompt


def test_a_conversation_that_does_not_fit_is_named_or_dropped(tmp_path: Path) -> None:
    path = write_chats(tmp_path / "a.jsonl")
    with path.open("a", encoding="utf-8") as f:
        long = [{"role": "user", "content": "x" * 80}, {"role": "assistant", "content": "y"}]
        f.write(json.dumps({"messages": long}) + "\n")
    with pytest.raises(ConfigError, match=r"data.seq_len is 64.*1 of .* conversations.*a.jsonl line 25"):
        build_data(data_of(path), 1, 0)
    data = build_data(data_of(path, drop_unanswered=True), 1, 0)
    assert data.stats["unanswered_dropped"] == 1
    assert data.stats["train_documents"] + data.stats["validation_documents"] == 24  # type: ignore[operator]
    assert build_data(data_of(path, seq_len=160), 1, 0).stats["unanswered_dropped"] == 0


def test_parquet_and_instruction_columns_give_the_same_data(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"ask": f"add {i}", "about": "" if i % 2 else f"{i}", "reply": f"{2 * i}"} for i in range(12)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    chats = [
        {"chat": [{"from": "human", "value": r["ask"] + ("\n\n" + r["about"] if r["about"] else "")},
                  {"from": "gpt", "value": r["reply"]}]}
        for r in rows
    ]  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(chats), tmp_path / "b.parquet")
    columns = Instructions(prompt="ask", input="about", answer="reply")
    shared_gpt = Messages(column="chat", role="from", content="value")
    sources = [
        JsonLines(glob=str(tmp_path / "a.jsonl"), chat=columns),
        Parquet(glob=str(tmp_path / "a.parquet"), chat=columns),
        Parquet(glob=str(tmp_path / "b.parquet"), chat=shared_gpt),
    ]
    first, *others = [build_data(data_of(tmp_path, source=s), 1, 0).shard(0).next_batch() for s in sources]
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


# --- the loss is normalised by answer tokens, everywhere


def nano() -> nn.Module:
    return build_model(ModelConfig(preset="nano"), vocab_size=260, max_tokens=32, seed=0, eos_id=256)


def masked_batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two micro-batches with very unequal numbers of counted targets."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for kept in (2, 14):
        ids = torch.randint(0, 256, (3, 17), generator=generator)
        targets = ids[:, 1:].clone()
        targets[:, : 16 - kept] = IGNORED
        found.append((ids[:, :-1], targets))
    return found


def expected(model: nn.Module, batches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """The definition: nats of all counted targets over their number."""
    nats = [token_losses(model, x, y).view(y.shape)[y != IGNORED] for x, y in batches]
    return torch.cat(nats).mean()


def island(kind: type[PlainIsland] = PlainIsland) -> PlainIsland:
    config = InnerConfig(optimizer=AdamW(lr=1e-3), clip_norm=None)
    return kind(nano(), config, steps=4, seed=0, losses=token_losses)


def test_the_gradient_is_that_of_the_mean_over_answer_tokens() -> None:
    batches, model = masked_batches(), nano()
    value = expected(model, batches)
    value.backward()
    loss = value.detach()
    plain = island()
    assert plain.backward(batches) == pytest.approx(float(loss), rel=1e-6)
    for own, theirs in zip(plain.params, model.parameters(), strict=True):
        torch.testing.assert_close(own.grad, theirs.grad, rtol=1e-4, atol=1e-7)
    together = BatchedIslands([island(), island()])
    one, two = together.backward({0: batches, 1: batches[:1]}).values()
    assert one == pytest.approx(float(loss), rel=1e-5)
    assert two == pytest.approx(float(expected(nano(), batches[:1]).detach()), rel=1e-5)
    torch.testing.assert_close(together.islands[0].params[0].grad, plain.params[0].grad, rtol=1e-3, atol=1e-6)
    assert mean_loss(nano(), batches, torch.device("cpu")) == pytest.approx(float(loss), rel=1e-6)


def test_example_privacy_takes_the_mean_of_each_conversation() -> None:
    (batch, _), model = masked_batches(), nano()
    private = island(PrivateIsland)
    assert isinstance(private, PrivateIsland)
    private.clip_each = private.add_noise = lambda _: None
    rows = [(batch[0][i : i + 1], batch[1][i : i + 1]) for i in range(3)]
    means = torch.stack([expected(model, [row]) for row in rows])
    means.mean().backward()
    assert private.backward([batch]) == pytest.approx(float(means.mean().detach()), rel=1e-6)
    for own, theirs in zip(private.params, model.parameters(), strict=True):
        torch.testing.assert_close(own.grad, theirs.grad, rtol=1e-4, atol=1e-7)


def test_a_step_whose_targets_are_all_masked_is_an_error() -> None:
    inputs, targets = masked_batches()[0]
    with pytest.raises(LowcommError, match="all targets of a step are masked"):
        island().backward([(inputs, torch.full_like(targets, IGNORED))])


def config_of(path: Path, run_dir: Path | None, **changes: Any) -> RunConfig:
    base = RunConfig(
        islands=2,
        steps=6,
        threads=1,
        transport="simulated",
        device="cpu",
        run_dir=run_dir,
        tensorboard=False,
        data=data_of(
            path, source=JsonLines(glob=str(path), chat=Messages(), label_column="site"), partition=NaturalId()
        ),
        model=ModelConfig(preset="nano"),
        sync=SyncConfig(every=3),
        eval=EvalConfig(clients=True),
        checkpoint=CheckpointConfig(every_rounds=1, export=False),
    )
    return dataclasses.replace(base, **changes)


def test_a_run_weighs_and_reports_by_answer_tokens(tmp_path: Path) -> None:
    config = config_of(write_chats(tmp_path / "a.jsonl", rows=40), tmp_path / "run")
    assert train(config) == 0
    data = build_data(config.data, 2, 0)
    shards = [data.shard(k) for k in range(2)]
    answer_tokens = sum(counted(shard.next_batch()[1]) for shard in shards for _ in range(6))
    summary = runs.summary(tmp_path / "run")
    assert summary["tokens"] == answer_tokens
    batches = [data.own_validation_batches(k) for k in range(2)]
    nats, tokens, text_bytes = 0.0, 0, 0
    from safetensors.torch import load_file

    model = nano()
    saved = load_file(next((tmp_path / "run" / "checkpoints").glob("*2/island-00000/island.safetensors")))
    weights = {k.removeprefix("model."): v for k, v in saved.items() if k.startswith("model.")}
    model.load_state_dict(weights, strict=False)
    for inputs, targets in data.validation_batches():
        with torch.no_grad():
            nats += float(token_losses(model, inputs, targets).sum())
        tokens, text_bytes = tokens + counted(targets), text_bytes + int(((targets >= 0) & (targets < 256)).sum())
    assert summary["val_loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert summary["val_bpb"] == pytest.approx(nats / math.log(2) / text_bytes, rel=1e-5)
    clients = json.loads((tmp_path / "run" / "clients.json").read_text(encoding="utf-8"))["clients"]["after"]
    assert clients == pytest.approx([mean_loss(model, b, torch.device("cpu")) for b in batches], rel=1e-5)
    partition = json.loads((tmp_path / "run" / "partition.json").read_text(encoding="utf-8"))
    assert [c["train_labels"].keys() for c in partition["clients"]] == [{"site0"}, {"site1"}]
    halves = dataclasses.replace(config, run_dir=tmp_path / "halves")
    stopped = dataclasses.replace(halves, checkpoint=dataclasses.replace(halves.checkpoint, stop_at_step=4))
    assert train(stopped) == 3
    assert train(dataclasses.replace(halves, resume=True)) == 0
    runs.assert_same(runs.outcome(tmp_path / "halves"), runs.outcome(tmp_path / "run"))


# --- bad input

RECIPE = """
from pathlib import Path
from tests.data.test_chat import config_of

def chats():
    return config_of(Path({path!r}), None)
"""


@pytest.mark.parametrize(
    ("line", "arguments", "words"),
    [
        (b'{"messages": [{"role": "user", "content": "\xff"}], "site": "a"}', [], "a.jsonl line 41 is not UTF-8"),
        (b'{"messages": [{"role": "robot", "content": "a"}], "site": "a"}', [], "line 41 message 1 is of the role"),
        (b'{"messages": [{"content": "a"}], "site": "a"}', [], "line 41 message 1 is of the role None"),
        (b'{"messages": [{"role": "user"}], "site": "a"}', [], "line 41 message 1 is without content"),
        (b'{"messages": [{"role": "user", "content": " "}], "site": "a"}', [], "message 1 is without content"),
        (b'{"messages": [{"role": "user", "content": ["a"]}], "site": "a"}', [], "message 1 is without content"),
        (b'{"messages": [{"role": "user", "content": "a"}], "site": "a"}', [], "line 41 is a conversation without an"),
        (b'{"messages": ["a"], "site": "a"}', [], "line 41 message 1 is a str"),
        (b'{"messages": [], "site": "a"}', [], "line 41 has none"),
        (b'{"messages": [{"role": "assistant", "content": "a"}]}', [], "'site'"),
        (b'{"messages": [{"role": "assistant", "content": "a"}], "site": null}', [], "line 41 has None"),
        (b'{"messages": [{"role": "assistant", "content": "\\ud800"}], "site": "a"}', [], "line 41 is no UTF-8"),
        (b"", ["--data.source.chat.column", "turns"], "a column of"),
        (b"", ["--data.source.label-column", "clinic"], "'clinic'"),
        (b"", ["--data.source.chat.content", "text"], "line 1 message 1 is without content"),
        (b"", ["--data.seq-len", "16"], "line 1"),
        (b"", ["--islands", "3"], "2 labels are fewer than 3 clients"),
        (b"", ["--data.sharding", "by_folder"], "data.sharding is 'by_folder'"),
        (b"", ["--data.validation-fraction", "0.7"], "data.validation_fraction"),
    ],
)  # fmt: skip
def test_bad_rows_are_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: bytes, arguments: list[str], words: str
) -> None:
    path = write_chats(tmp_path / "a.jsonl", rows=40)
    path.write_bytes(path.read_bytes() + line + b"\n")
    recipe = tmp_path / "chats.py"
    recipe.write_text(RECIPE.format(path=str(path)), encoding="utf-8")
    code = main(["train", f"{recipe}:chats", "--run-dir", str(tmp_path / "new"), *arguments])
    captured = capsys.readouterr()
    assert code == 2, captured
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_no_chat_column_may_be_without_name(tmp_path: Path) -> None:
    for chat in (Messages(column=""), Instructions(prompt="")):
        with pytest.raises(ConfigError, match="columns with names"):
            JsonLines(glob="*", chat=chat).check()
    assert isinstance(Bytes().load(lambda: iter(()), tmp_path), BytesTokenizer)
