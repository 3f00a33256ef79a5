"""Says what is wrong in the words of a library's arguments, where the checks speak of a recipe's fields and flags.

sync.schedule.delay -> schedule.delay        sync.sampling -> clients.sampling
lower --sync.every or raise --steps -> lower every        --sync.aggregator.by uniform -> aggregator.by=uniform
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from lowcomm.types import ConfigError

_OPEN = (
    ("1 <= every <= steps (any)", "1 or more"),
    ("steps (any)", "steps"),
    (" or raise --steps", ""),
    ("--sync.allow-attack", "clients.allow_attack=True"),
)
"""Of a loop nobody knows the steps; the last is an argument of `clients`."""
_CHOICE = re.compile(r"(?:pass )?--sync\.([a-z][a-z.-]*) (\d[\w.]*|size|uniform|reduce|wait)\b")
_FLAG = re.compile(r"--sync\.([a-z][a-z.-]*[a-z])")
_CLIENTS = re.compile(
    r"\bsync\.(?=(?:sampling|local_steps|objective|secure|attack|allow_attack|moments|fresh_inner)\b)"
)
_FIELD = re.compile(r"\bsync\.(?=[a-z])")


def in_arguments(text: str) -> str:
    """A message about fields and flags as one about arguments."""
    for flags, arguments in _OPEN:
        text = text.replace(flags, arguments)
    text = _CHOICE.sub(lambda m: f"{m[1].replace('-', '_')}={m[2]}", text)
    text = _FLAG.sub(lambda m: m[1].replace("-", "_"), text)
    return _FIELD.sub("", _CLIENTS.sub("clients.", text))


@contextmanager
def speaks_of_arguments() -> Iterator[None]:
    """Within, or in a function that it decorates, ConfigErrors speak of arguments."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(in_arguments(str(error))) from error.__cause__
