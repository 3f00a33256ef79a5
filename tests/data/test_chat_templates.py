"""Chat templates as models have them: what is learnt of each, what may not be lost, dates, marks, keys and tools."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from lowcomm.data import (
    Bytes,
    ChatFormat,
    DataConfig,
    Instructions,
    JsonLines,
    Messages,
    Parquet,
    PromptCompletion,
    build_data,
)
from lowcomm.data.bytes_tokenizer import BytesTokenizer
from lowcomm.data.chat import TOOLS, chat_document, tools_of
from lowcomm.data.chat_date import fixed
from lowcomm.data.source import Document
from lowcomm.data.template import Template
from lowcomm.types import ConfigError

CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"day": 1}}}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
CHATML_WITH_CALLS = (
    "{% if tools %}{% for t in tools %}{{ t | tojson }}\n{% endfor %}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
REASONING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% set parts = m.content.split('</think>') %}"
    "{% if m.role == 'assistant' and loop.last %}"
    "<think>\n{{ parts[0].split('<think>')[-1].strip('\n') if parts | length > 1 else '' }}\n</think>\n\n{% endif %}"
    "{{ parts[-1].lstrip('\n') }}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Earlier answers lose their reasoning, the last one gets an empty one if it has none, as Qwen3's does."""
NO_REASONING = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<A>{{ m.content.split('</think>')[-1] }}<E>"
    "{% else %}<U>{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<A><think>\n{% endif %}"
)
"""The generation prompt opens a thought that no rendered answer has, as DeepSeek-R1-distill's does."""
LAST_MARK = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""The last turn ends with another mark than those before it, as gpt-oss's does."""
MARKED = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>"
    "{% endgeneration %}{% else %}{{ m.content }}<|end|>{% endif %}{{ loop.index }}{% endfor %}"
)
VISION = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def row_of(*turns: Any, **columns: Any) -> Document:
    """A row of a file; a pair is a turn without further keys."""
    messages = [{"role": t[0], "content": t[1]} if isinstance(t, tuple) else t for t in turns]
    row = {"messages": messages, **columns}
    return chat_document("a", "line 1", Messages().messages(row, "line 1"), "", tools=tools_of(row, "line 1"))


def rendered(source: str, document: Document, date: str = "2026-01-01") -> tuple[str, list[str]]:
    """The text and what is learnt of it."""
    template = Template(BytesTokenizer(), "tokenizer", date)
    template.source = source
    found = template.render(document)
    return found.text, [found.text[begin:end] for begin, end in found.answers]


TWO = (("user", "one?"), ("assistant", "one"), ("user", "two?"), ("assistant", "two"))
THOUGHTS = (("user", "one?"), ("assistant", "<think>\nh1\n</think>\n\none"), ("user", "two?"),
            ("assistant", "<think>\nh2\n</think>\n\ntwo"))  # fmt: skip


@pytest.mark.parametrize(
    ("source", "turns", "learnt"),
    [
        (REASONING, TWO, ["one<|im_end|>", "<think>\n\n</think>\n\ntwo<|im_end|>"]),
        (REASONING, THOUGHTS, ["one<|im_end|>", "<think>\nh2\n</think>\n\ntwo<|im_end|>"]),
        (NO_REASONING, TWO, ["one<E>", "two<E>"]),
        (NO_REASONING, TWO[:2], ["one<E>"]),
        (LAST_MARK, TWO, ["one<|end|>", "two<|return|>"]),
        (MARKED, TWO, ["one<|end|>", "two<|end|>"]),
        (CHATML_WITH_CALLS, TWO, ["one<|im_end|>", "two<|im_end|>"]),
    ],
)
def test_templates_that_rewrite_earlier_turns_are_learnt_from_what_they_render(
    source: str, turns: Any, learnt: list[str]
) -> None:
    text, found = rendered(source, row_of(*turns))
    assert found == learnt
    for _, content in turns:
        assert content.rpartition("</think>")[2].strip() in text


@pytest.mark.parametrize("text", ["a", "assistant", "user\n", "<U>", "</think>", "x</think>", "\n", 'é漢 "q" \\'])
def test_short_and_odd_texts_do_not_move_the_answers(text: str) -> None:
    turns = [("user", f"{text}?"), ("assistant", f"1{text}1"), ("user", f"{text}!"), ("assistant", f"2{text}2")]
    for source in (CHATML_WITH_CALLS, LAST_MARK):
        _, found = rendered(source, row_of(*turns))
        assert [a.split("<|")[0] for a in found] == [f"1{text}1", f"2{text}2"]


def test_a_last_answer_without_its_reasoning_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"leaves out the reasoning before </think> of message 4 of line 1"):
        rendered(NO_REASONING, row_of(*THOUGHTS))


def test_a_template_that_renders_questions_as_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"leaves out the text of message 1 of line 1"):
        rendered(VISION, row_of(*TWO))
    with pytest.raises(ConfigError, match=r"leaves out the text of message 1"):
        rendered(VISION, row_of(("user", "<"), ("assistant", "a")))  # a text that the template's own text holds


def test_answers_of_weight_0_are_read_and_not_learnt() -> None:
    wrong = {"role": "assistant", "content": "WRONG", "weight": 0}
    for source in (CHATML_WITH_CALLS, REASONING, MARKED):
        text, found = rendered(source, row_of(("user", "q"), wrong, ("user", "no"), ("assistant", "RIGHT")))
        assert "WRONG" in text and len(found) == 1 and "RIGHT" in found[0] and "WRONG" not in found[0]
    text, found = rendered(CHATML_WITH_CALLS, row_of(*TWO, ("user", "no"), wrong))
    assert found == ["one<|im_end|>", "two<|im_end|>"] and "WRONG" not in text, "nothing follows what is learnt"
    for weight in (0.5, -1, "1"):
        with pytest.raises(ConfigError, match="message 2 is of weight"):
            row_of(("user", "q"), {**wrong, "weight": weight})
    with pytest.raises(ConfigError, match="all have weight 0"):
        row_of(("user", "q"), wrong)
    assert row_of(*TWO) != row_of(("user", "one?"), {**wrong, "content": "one"}, *TWO[2:])
    texts = {row_of(("user", "q"), {**wrong, "weight": w}, *TWO).text for w in (0, 1)}
    assert len(texts) == 2, "not taken for duplicates"


@pytest.mark.parametrize("content", ["let me look", "", None])
@pytest.mark.parametrize("arguments", [{"day": 1}, '{"day": 1}'])
def test_calls_and_tools_reach_the_template_and_are_learnt(content: str | None, arguments: Any) -> None:
    call = {**CALL, "function": {"name": "get_weather", "arguments": arguments}}
    asks = {"role": "assistant", "content": content, "tool_calls": [call]}
    told = {"role": "tool", "name": "get_weather", "tool_call_id": "1", "content": "sunny"}
    turns = (("user", "weather?"), asks, told, ("assistant", "Sunny."))
    for tools in ([TOOL], json.dumps([TOOL])):
        text, found = rendered(CHATML_WITH_CALLS, row_of(*turns, tools=tools))
        assert found[0] == (content or "") + '<call>{"name": "get_weather", "arguments": {"day": 1}}</call><|im_end|>'
        assert found[1] == "Sunny.<|im_end|>" and json.dumps(TOOL) in text and "None" not in text
    with pytest.raises(ConfigError, match="of message 2"):
        rendered(LAST_MARK, row_of(*turns))
    with pytest.raises(ConfigError, match="leaves out the tools of line 1"):
        rendered(LAST_MARK, row_of(*TWO, tools=[TOOL]))


def test_special_tokens_in_calls_stay_text() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"<|endoftext|>": ["<|endoftext|>"]}}}
    template = Template(BytesTokenizer(), "tokenizer")
    template.source = CHATML_WITH_CALLS
    document = row_of(("user", "q"), {"role": "assistant", "content": "", "tool_calls": [call]})
    ids, _ = template.encode(template.render(document))
    assert (ids == 256).sum() == 1, "the one at the end"
    assert b'{"<|endoftext|>": ["<|endoftext|>"]}' in bytes(ids[ids < 256].tolist())


def test_a_key_that_the_template_does_not_render_is_named(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q", "id": 7}, {"role": "assistant", "content": "a", "id": None}]
    with pytest.raises(ConfigError, match=r"the key 'id' of message 1 of .*--data.source.chat.ignore id"):
        rendered(CHATML_WITH_CALLS, row_of(*turns))
    row = {"messages": turns}
    kept = Messages(ignore=("id",)).messages(row, "line 1")
    assert all(not m.more for m in kept)
    reasons = {"role": "assistant", "content": "a", "reasoning_content": "hm"}
    with pytest.raises(ConfigError, match="the key 'reasoning_content' of message 2"):
        rendered(CHATML_WITH_CALLS, row_of(("user", "q"), reasons))
    told = CHATML_WITH_CALLS.replace("{{ m.content or '' }}", "{{ m.reasoning_content or '' }}|{{ m.content or '' }}")
    assert rendered(told, row_of(("user", "q"), reasons))[1] == ["hm|a<|im_end|>"]


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"content": [{"type": "image", "url": "x"}]}, "with a part of type 'image'"),
        ({"content": "a", "tool_calls": "f()"}, "with tool_calls of type str"),
        ({"content": "a", "tool_calls": [{"id": 1}]}, "with the tool call"),
        ({"content": "a\ufdd1"}, "noncharacter"),
    ],
)
def test_messages_that_are_not_understood(message: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as info:
        rendered(CHATML_WITH_CALLS, row_of(("user", "q"), {"role": "assistant", **message}))
    assert "\n" not in str(info.value)
    with pytest.raises(ConfigError, match=f"with {TOOLS} that are"):
        row_of(*TWO, tools="get_weather")


def test_parts_of_text_are_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert row_of(("user", "q"), {"role": "assistant", "content": parts}).messages[1].content == "ab"


def test_marks_are_used_where_there_are_any(tmp_path: Path) -> None:
    others = "{% for m in messages[:-1] %}{{ m.content }}{% endfor %}"
    one_mark = f"{{% generation %}}{{{{ messages[-1].content }}}}{{% endgeneration %}}{others}"
    assert rendered(one_mark, row_of(*TWO))[1] == ["two"]
    none = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if false %}{% generation %}{% endgeneration %}{% endif %}"
    )
    with pytest.raises(ConfigError, match="nothing of line 1 is marked"):
        rendered(none, row_of(*TWO))
    wrong = {"role": "assistant", "content": "WRONG", "weight": 0}
    with pytest.raises(ConfigError, match="2 answers and 1 marks"):
        rendered(one_mark, row_of(("user", "q"), wrong, ("user", "r"), ("assistant", "x")))


def test_refusal_is_the_last_way_out() -> None:
    twice = "{% for m in messages %}[{{ messages | length }}]{{ m.content }}{{ m.content }}{% endfor %}"
    with pytest.raises(ConfigError, match=r"answers can be told.*--data.chat-template chatml"):
        rendered(twice, row_of(*TWO))


# --- dates


DATED = "{{ strftime_now('%d %b %Y') }}:" + CHATML_WITH_CALLS


def test_a_date_is_the_one_of_the_run(tmp_path: Path) -> None:
    assert rendered(DATED, row_of(*TWO))[0].startswith("01 Jan 2026:")
    assert rendered(DATED, row_of(*TWO), "2025-12-31")[0].startswith("31 Dec 2025:")
    assert fixed('{% set now = strftime_now( "%s" ) | int %}', "1970-01-02") == '{% set now = "86400" | int %}'
    known = "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}" + CHATML_WITH_CALLS
    assert rendered(known, row_of(*TWO))[0].startswith("2026<|im_start|>")


@pytest.mark.parametrize("what", ["{{ strftime_now(form) }}", "{{ ['a', 'b'] | random }}", "{{ lipsum() }}"])
def test_a_template_that_goes_by_clock_or_chance_is_refused(what: str) -> None:
    with pytest.raises(ConfigError, match="renders the same on every island and day"):
        rendered(what + CHATML_WITH_CALLS, row_of(*TWO))


def test_the_date_is_a_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.chat_date is 'today'; legal: a date as year-month-day"):
        DataConfig(chat_date="today").check(1)


def dated_data(directory: Path, monkeypatch: pytest.MonkeyPatch, date: str) -> Any:
    rows = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i}"}]}
        for i in range(30)
    ]
    (directory / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    monkeypatch.setattr(BytesTokenizer, "chat_template", DATED)
    source = JsonLines(glob=str(directory / "a.jsonl"), chat=Messages())
    config = DataConfig(source=source, tokenizer=Bytes(), seq_len=160, batch_size=2, chat_date=date)
    return build_data(config, 2, 0)


def test_another_day_is_the_same_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import chat_template_utils

    first = dated_data(tmp_path, monkeypatch, "2026-01-01").shard(0)
    state = first.state_dict()

    class Tomorrow:
        @staticmethod
        def now() -> Any:
            raise AssertionError("the clock was read")

    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    again = dated_data(tmp_path, monkeypatch, "2026-01-01").shard(0)
    again.load_state_dict(state)
    assert all(a.equal(b) for a, b in zip(first.next_batch(), again.next_batch(), strict=True))


# --- prompt and completion


def test_only_the_completion_is_learnt(tmp_path: Path) -> None:
    format_ = PromptCompletion()
    texts = format_.messages({"prompt": "q", "completion": "a"}, "line 1")
    assert [(m.role, m.content, m.learnt) for m in texts] == [("user", "q", False), ("assistant", "a", True)]
    prompt = [{"role": r, "content": c} for r, c in TWO]
    turns = format_.messages(
        {"prompt": [*prompt, {"role": "user", "content": "3?"}], "completion": [{"role": "assistant", "content": "3"}]},
        "line 1",
    )
    document = chat_document("a", "line 1", turns, "")
    assert rendered(CHATML_WITH_CALLS, document)[1] == ["3<|im_end|>"]
    assert rendered(REASONING, document)[1] == ["<think>\n\n</think>\n\n3<|im_end|>"]
    with pytest.raises(ConfigError, match="the completion of line 1 is a conversation without an answer"):
        format_.messages({"prompt": "q", "completion": [{"role": "user", "content": "a"}]}, "line 1")
    with pytest.raises(ConfigError, match="'completion' holds nothing"):
        format_.messages({"prompt": "q", "completion": ""}, "line 1")


SYSTEM_PROMPT = "Answer in verse."
TURNS = [{"role": r, "content": c} for r, c in TWO]
FORMATS = (
    (Messages(), {"messages": TURNS}, len(TURNS)),
    (PromptCompletion(), {"prompt": "q", "completion": "a"}, 2),
    (Instructions(), {"instruction": "q", "output": "a"}, 2),
)


@pytest.mark.parametrize(("format_", "row", "turns"), FORMATS, ids=lambda f: type(f).__name__)
def test_what_stands_beside_a_conversation_is_read_or_refused(
    format_: ChatFormat, row: dict[str, Any], turns: int, tmp_path: Path
) -> None:
    def read(chat: ChatFormat = format_, /, **beside: Any) -> list[tuple[str, str]]:
        (tmp_path / "a.jsonl").write_text(json.dumps({**row, **beside}), encoding="utf-8")
        (document,) = JsonLines(glob=str(tmp_path / "a.jsonl"), chat=chat).read(tmp_path).documents
        return [(m.role, m.content) for m in document.messages]

    plain = read()
    assert len(plain) == turns
    assert read(system=SYSTEM_PROMPT) == [("system", SYSTEM_PROMPT), *plain]
    assert read(system="", history=[], functions=None, weight=1) == plain == read(weight="1", note="any")
    wrong: tuple[tuple[str, Any], ...] = (
        ("history", [["x", "y"]]),
        ("functions", [{"name": "f"}]),
        ("weight", 0),
        ("system", 5),
    )
    for column, value in wrong:
        with pytest.raises(ConfigError, match=rf"column '{column}' of .* line 1 holds .*chat\.ignore {column}"):
            read(**dict[str, Any]({column: value}))
        ignoring = dataclasses.replace(format_, ignore=(column,))
        assert read(ignoring, **dict[str, Any]({column: value})) == plain


def test_two_prompts_of_the_system_must_be_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for column, fits in ((SYSTEM_PROMPT, True), ("Answer in prose.", False)):
        row = {"messages": [{"role": "system", "content": SYSTEM_PROMPT}, *TURNS], "system": column}
        path.write_text(json.dumps(row), encoding="utf-8")
        source = JsonLines(glob=str(path), chat=Messages())
        if fits:
            assert len(source.read(tmp_path).documents[0].messages) == 1 + len(TURNS)
        else:
            with pytest.raises(ConfigError, match="keep one of the two"):
                source.read(tmp_path)


def test_parquet_fills_no_keys(tmp_path: Path) -> None:
    """Columns of structs hold every key in every row: those of other rows are None."""
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"messages": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "", "tool_calls": [CALL]}],
         "tools": [TOOL]},
    ]  # fmt: skip
    schema = pyarrow.Table.from_pylist(rows[::-1]).schema
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), tmp_path / "a.parquet")
    first, second = Parquet(glob=str(tmp_path / "*.parquet"), chat=Messages()).read(tmp_path).documents
    assert all(not m.more for m in first.messages) and not first.tools
    assert second.messages[1].more["tool_calls"] == [CALL] and second.tools
