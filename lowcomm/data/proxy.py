"""The proxy set: a small public text that every island holds, on which candidates for the next weights are judged."""

from __future__ import annotations

from dataclasses import dataclass, field

from lowcomm.data.python_corpus import PythonCorpus
from lowcomm.data.source import Source
from lowcomm.types import require


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """Which text, and how much of it; every island must read the same."""

    source: Source = field(default_factory=PythonCorpus)
    """Where it comes from: text that no island trains on tells most."""
    sequences: int = 64
    """Sequences of `data.seq_len` tokens, spread evenly over half of the text; fewer if it has fewer."""


def check_proxy(proxy: Proxy | None, rule: str, needed: bool) -> None:
    """Raise ConfigError for a rule without the proxy set that it needs, or one that nobody reads."""
    legal = f"a text to judge by, as {rule} asks for losses"
    require(proxy is not None or not needed, "sync.proxy", None, legal, "pass --sync.proxy.source, or proxy=Proxy()")
    if proxy is None:
        return
    require(needed, "sync.proxy", "Proxy", f"None, as {rule} judges nothing by losses", "leave it out")
    require(proxy.sequences >= 1, "sync.proxy.sequences", proxy.sequences, "1 or more", "64 is usual")
    proxy.source.check()
