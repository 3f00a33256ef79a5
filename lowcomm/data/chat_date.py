"""Fixes the date of chat templates: every island and every day must render the same text."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from functools import lru_cache

from lowcomm.data.errors import bad

CHAT_DATE = "2026-01-01"
"""What templates that write a date write, unless another is chosen."""

_DATE = re.compile(r"""strftime_now\(\s*(?:'([^'\\]*)'|"([^"\\]*)")\s*\)""")
_BY_CHANCE = re.compile(r"\|\s*random\b|\blipsum\s*\(|\bstrftime_now\s*\(")


@lru_cache
def fixed(source: str, date: str) -> str:
    """The template with the date in the place of the clock; raises ConfigError for one that goes by clock or chance."""
    day = datetime.fromisoformat(date).replace(tzinfo=UTC)

    def written(call: re.Match[str]) -> str:
        form = (call[1] if call[1] is not None else call[2]).replace("%s", str(int(day.timestamp())))
        return json.dumps(day.strftime(form), ensure_ascii=False)

    source = _DATE.sub(written, source)
    if found := _BY_CHANCE.search(source):
        raise bad(
            "chat_template",
            found[0],
            "a template that renders the same on every island and day",
            "write the text instead of it, or pass --data.chat-template chatml",
        )
    return source
