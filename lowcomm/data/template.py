"""Conversations as text by a tokenizer's chat template, and where in that text the answers are.

A template that marks the answers itself (`{% generation %}`) is taken at its word; otherwise `answers` finds them in
what is rendered. The text of every turn, each of its further keys and the tools must be in the rendering: what a
template leaves out, a model would learn to leave out. Dates are those of `data.chat_date`, equal everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from lowcomm.data.answers import Span, Turn, by_prefixes, by_slots, forms_of, lost_turn, slotted, spelled, thought_of
from lowcomm.data.chat import ASSISTANT
from lowcomm.data.chat_date import CHAT_DATE, fixed
from lowcomm.data.errors import bad, one_line
from lowcomm.data.source import Document, Message
from lowcomm.data.tokenizer import CHATML, Tokenizer
from lowcomm.types import ConfigError

ChatTemplate = Literal["tokenizer", "chatml"]

_MARK = "\ufdd0"
"""A Unicode noncharacter. Before rendering, it stands for special tokens that a text spells."""
_NONCHARACTERS = re.compile("[\ufdd0-\ufdd2]")
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_ADDRESSES = ("name", "tool_call_id")
"""Keys that tie the turn of a tool to its call; templates that go by the order of turns leave them out."""


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """One conversation as text."""

    text: str
    answers: tuple[Span, ...]
    """Begin and end of each answer, in characters of `text`; the mark that ends the turn is part of it."""


class Template:
    """Renders with a tokenizer's own Jinja template, in transformers' sandbox, or with CHATML."""

    def __init__(self, tokenizer: Tokenizer, choice: ChatTemplate, date: str = CHAT_DATE) -> None:
        """date: year-month-day. Raises ConfigError for a tokenizer without a template."""
        source = CHATML if choice == "chatml" else tokenizer.chat_template
        if source is None:
            raise bad(
                "chat_template",
                choice,
                "a tokenizer with a chat template, or 'chatml'",
                "use the model's own chat tokenizer, or pass --data.chat-template chatml",
            )
        self.source = source
        self._date = date
        self._tokenizer = tokenizer
        self._special = sorted(tokenizer.special_ids, key=len, reverse=True)

    def render(self, document: Document) -> Rendered:
        """Special tokens that a turn spells are replaced by marks, which `encode` turns back into plain text.

        Turns behind the last answer that is learnt are left out. Raises ConfigError where the template fails on the
        conversation, leaves out some of it, or where answers can't be told from the rest.
        """
        learnt = [i for i, m in enumerate(document.messages) if m.role == ASSISTANT and m.learnt]
        turns = [self._turn(m, document.place) for m in document.messages[: learnt[-1] + 1]]
        errors: list[ConfigError] = []
        for form in forms_of(turns):
            try:
                return self._render(document, form, learnt)
            except ConfigError as error:
                errors.append(error)
        raise errors[0]

    def _render(self, document: Document, turns: list[Turn], learnt: Sequence[int]) -> Rendered:
        view = _View(self, document, turns)
        whole = view.text(view.turns, False)
        view.check_nothing_is_lost(whole)
        if _GENERATION.search(self.source):
            text, answers = whole.rstrip(), view.marked(whole, learnt)
        else:
            found = by_prefixes(view.text, view.turns, learnt, whole)
            found = found or by_slots(view.text, view.slots, learnt, view.skeleton, whole)
            if found is None:
                raise bad(
                    "chat_template",
                    "the tokenizer's",
                    "a template in whose text the answers can be told from the rest",
                    f"{document.place} is rendered otherwise with each turn: add {{% generation %}} marks to the "
                    "template, or pass --data.chat-template chatml",
                )
            text, answers = whole[: found[-1][1]], found
        return Rendered(text=text, answers=tuple(answers))

    def _turn(self, message: Message, place: str) -> Turn:
        more = {key: self._marked(value, place) for key, value in message.more.items()}
        return {"role": message.role, "content": self._marked(message.content, place), **more}

    def _marked(self, value: Any, place: str) -> Any:
        """Also of all texts in lists and objects."""
        if isinstance(value, dict):
            return {self._marked(key, place): self._marked(own, place) for key, own in value.items()}
        if isinstance(value, list | tuple):
            return [self._marked(own, place) for own in value]
        if not isinstance(value, str):
            return value
        if _NONCHARACTERS.search(value):
            raise ConfigError(
                f"data.source: {place} has a noncharacter (U+FDD0 to U+FDD2); legal: Unicode text; "
                "fix: repair or drop the row"
            )
        for number, token in enumerate(self._special):
            value = value.replace(token, f"{_MARK}{chr(0xF0000 + number)}")
        return value

    def plain(self, text: str) -> str:
        """The text with every mark as what it stands for."""
        for number, token in enumerate(self._special):
            text = text.replace(f"{_MARK}{chr(0xF0000 + number)}", token)
        return text

    def rendered(
        self, turns: Sequence[Turn], tools: list[Any], generation: bool, place: str, spans: bool = False
    ) -> tuple[str, list[Span]]:
        """The text, and with `spans` what `{% generation %}` marks; raises ConfigError where the template does."""
        from transformers.utils import chat_template_utils

        render = cast("Any", chat_template_utils.render_jinja_template)
        try:
            texts, marks = render(
                [list(turns)],
                tools=tools or None,
                chat_template=fixed(self.source, self._date),
                add_generation_prompt=generation,
                return_assistant_tokens_mask=spans,
                **self._tokenizer.special_tokens,
            )
        except ConfigError:
            raise
        except Exception as error:  # a template may raise whatever it likes
            raise ConfigError(
                f"data.source: the chat template refuses {place} ({one_line(error)}); "
                "legal: a conversation that it renders; fix: drop the row, or pass --data.chat-template chatml"
            ) from error
        return texts[0], list(marks[0]) if spans else []

    def encode(self, rendered: Rendered) -> tuple[np.ndarray, np.ndarray]:
        """(ids int64 [tokens], bool [tokens]: part of an answer). Without the template's own, an end-of-text is added.

        A token belongs to an answer if it begins in one.
        """
        ids: list[np.ndarray] = []
        starts: list[np.ndarray] = []
        at = 0
        for piece, special in self._pieces(rendered.text):
            plain = self.plain(piece)
            found, begins = self._tokenizer.locate(plain, special)
            if len(plain) != len(piece):  # offsets back to characters of the marked text
                ends = np.cumsum([len(self.plain(c)) for c in _characters(piece)])
                lengths = [len(c) for c in _characters(piece)]
                own = np.minimum(np.searchsorted(ends, begins, side="right"), len(ends) - 1)
                begins = (np.cumsum(lengths) - lengths)[own]
            ids.append(found)
            starts.append(begins + at)
            at += len(piece)
        tokens, begins = np.concatenate(ids), np.concatenate(starts)
        answer = np.zeros(len(tokens), dtype=bool)
        for begin, end in rendered.answers:
            answer |= (begins >= begin) & (begins < end)
        if tokens[-1] != self._tokenizer.end_of_text_id:
            tokens, answer = np.append(tokens, self._tokenizer.end_of_text_id), np.append(answer, True)
        return tokens, answer

    def _pieces(self, text: str) -> list[tuple[str, bool]]:
        """The text as a whole, or, where marks are in it, cut at special tokens: (piece, may hold special tokens)."""
        if _MARK not in text:
            return [(text, True)]
        parts = re.split(f"({'|'.join(map(re.escape, self._special))})", text)
        return [(part, i % 2 == 1) for i, part in enumerate(parts) if part]


class _View:
    """One conversation as its template sees it."""

    def __init__(self, template: Template, document: Document, turns: list[Turn]) -> None:
        self._template, self._document = template, document
        self._tools = [template._marked(tool, document.place) for tool in document.tools]
        self.turns = turns
        self.slots = slotted(turns)
        self.skeleton = self.text([slot.turn for slot in self.slots], False)

    def text(self, turns: Sequence[Turn], generation: bool) -> str:
        return self._template.rendered(turns, self._tools, generation, self._document.place)[0]

    def marked(self, whole: str, learnt: Sequence[int]) -> list[Span]:
        """The answers that the template marks, without those of weight 0; raises ConfigError for none."""
        place = self._document.place
        _, spans = self._template.rendered(self.turns, self._tools, False, place, spans=True)
        answers = [i for i, turn in enumerate(self.turns) if turn["role"] == ASSISTANT]
        if len(spans) == len(answers):
            spans = [span for i, span in zip(answers, spans, strict=True) if i in learnt]
        elif len(answers) != len(learnt):
            fix = f"{place} has {len(answers)} answers and {len(spans)} marks: pass --data.chat-template chatml"
            raise bad(
                "chat_template", "the tokenizer's", "one {% generation %} mark per answer, as some have weight 0", fix
            )
        spans = [(begin, min(end, len(whole.rstrip()))) for begin, end in spans]
        if not any(begin < end for begin, end in spans):
            fix = f"nothing of {place} is marked: mark the answers, or pass --data.chat-template chatml"
            raise bad("chat_template", "the tokenizer's", "{% generation %} marks around the answers", fix)
        return spans

    def check_nothing_is_lost(self, whole: str) -> None:
        """Raises ConfigError for a turn, a key or tools that the template leaves out."""
        lost = lost_turn(self.slots, self.skeleton)
        for i, slot in enumerate(self.slots):
            if lost == i or (slot.piece is not None and not spelled(slot.piece, whole)):
                raise self._left_out(i, "the text")
        thought = thought_of(self.turns[-1])
        if thought and not spelled(thought, whole):  # of earlier answers, templates leave it out on purpose
            raise self._left_out(len(self.turns) - 1, "the reasoning before </think>")
        for i, turn in enumerate(self.turns):
            for key in turn:
                address = turn["role"] == "tool" and key in _ADDRESSES
                if key not in ("role", "content") and not address and not self._matters(i, key, whole):
                    fix = f"--data.source.chat.ignore {key} if it means nothing to the model"
                    raise self._left_out(i, f"the key {key!r}", fix)
        if self._tools and self._template.rendered(self.turns, [], False, self._document.place)[0] == whole:
            raise self._left_out(None, "the tools")

    def _matters(self, number: int, key: str, whole: str) -> bool:
        """Whether the rendering is another one without this key."""
        turn = {name: value for name, value in self.turns[number].items() if name != key}
        try:
            return self.text([*self.turns[:number], turn, *self.turns[number + 1 :]], False) != whole
        except ConfigError:
            return True  # the template cannot do without it

    def _left_out(self, number: int | None, what: str, fix: str | None = None) -> ConfigError:
        where = self._document.place if number is None else f"message {number + 1} of {self._document.place}"
        another = "use a tokenizer with another template, drop the row"
        chatml = "" if "key" in what or "tools" in what else ", or pass --data.chat-template chatml"
        return ConfigError(
            f"data.chat_template: the template leaves out {what} of {where}; legal: a template that renders all of it; "
            f"fix: {another}{chatml}{f', or pass {fix}' if fix else ''}"
        )


def _characters(piece: str) -> list[str]:
    """Characters, a mark and what follows it as one."""
    return re.findall(f"{_MARK}.|.", piece, flags=re.DOTALL)
