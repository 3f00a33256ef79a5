"""Conversations as text by a tokenizer's chat template, and where in that text the answers are.

The answers are found by rendering: the text of turns 0..i-1 with the generation prompt must begin the text of turns
0..i, and what comes after it is answer i, up to the mark that ends the turn. So what is learnt is exactly what a model
must write after what it is shown. A template that renders earlier turns otherwise once later ones follow is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from lowcomm.data.chat import ASSISTANT
from lowcomm.data.chatml import CHATML
from lowcomm.data.errors import bad, one_line
from lowcomm.data.source import Document, Message
from lowcomm.data.tokenizer import Tokenizer
from lowcomm.types import ConfigError

ChatTemplate = Literal["tokenizer", "chatml"]

_MARK = "\ufdd0"
"""A Unicode noncharacter. Before rendering, it stands for special tokens that a text spells."""


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """One conversation as text."""

    text: str
    answers: tuple[tuple[int, int], ...]
    """Begin and end of each answer, in characters of `text`; the mark that ends the turn is part of it."""


class Template:
    """Renders with a tokenizer's own Jinja template, in transformers' sandbox, or with CHATML."""

    def __init__(self, tokenizer: Tokenizer, choice: ChatTemplate) -> None:
        """Raises ConfigError for a tokenizer without a template."""
        source = CHATML if choice == "chatml" else tokenizer.chat_template
        if source is None:
            raise bad(
                "chat_template",
                choice,
                "a tokenizer with a chat template, or 'chatml'",
                "use the model's own chat tokenizer, or pass --data.chat-template chatml",
            )
        self.source = source
        self._tokenizer = tokenizer
        self._special = sorted(tokenizer.special_ids, key=len, reverse=True)

    def render(self, document: Document) -> Rendered:
        """Special tokens that a turn spells are replaced by marks, which `encode` turns back into plain text.

        Raises ConfigError where the template fails on the conversation or where its prefixes do not fit.
        """
        messages = [Message(m.role, self._marked(m.content, document.place)) for m in document.messages]
        last = max(i for i, m in enumerate(messages) if m.role == ASSISTANT)
        whole = self._text(messages[: last + 1], False, document.place)
        answers: list[tuple[int, int]] = []
        for i, message in enumerate(messages):
            if message.role != ASSISTANT:
                continue
            prompt = self._text(messages[:i], True, document.place)
            upto = self._text(messages[: i + 1], False, document.place) if i < last else whole
            if not (upto.startswith(prompt) and whole.startswith(upto)):
                raise bad(
                    "chat_template",
                    "the tokenizer's",
                    "a template that adds text for a further turn and leaves what is before it as it is",
                    f"message {i + 1} of {document.place} is rendered otherwise: pass --data.chat-template chatml",
                )
            answers.append((len(prompt), len(prompt) + len(upto[len(prompt) :].rstrip())))
        return Rendered(text=whole[: answers[-1][1]], answers=tuple(answers))

    def _marked(self, content: str, place: str) -> str:
        if _MARK in content:
            raise ConfigError(
                f"data.source: {place} has the noncharacter U+FDD0; legal: Unicode text; fix: repair or drop the row"
            )
        for number, token in enumerate(self._special):
            content = content.replace(token, f"{_MARK}{chr(0xF0000 + number)}")
        return content

    def plain(self, text: str) -> str:
        """The text with every mark as what it stands for."""
        for number, token in enumerate(self._special):
            text = text.replace(f"{_MARK}{chr(0xF0000 + number)}", token)
        return text

    def _text(self, messages: Sequence[Message], generation: bool, place: str) -> str:
        from transformers.utils import chat_template_utils

        render = cast("Any", chat_template_utils.render_jinja_template)
        turns = [{"role": m.role, "content": m.content} for m in messages]
        try:
            rendered, _ = render(
                [turns],
                chat_template=self.source,
                add_generation_prompt=generation,
                **self._tokenizer.special_tokens,
            )
        except Exception as error:  # a template may raise whatever it likes
            raise ConfigError(
                f"data.source: the chat template refuses {place} ({one_line(error)}); "
                "legal: a conversation that it renders; fix: drop the row, or pass --data.chat-template chatml"
            ) from error
        return rendered[0]

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


def _characters(piece: str) -> list[str]:
    """Characters, a mark and what follows it as one."""
    return re.findall(f"{_MARK}.|.", piece, flags=re.DOTALL)
