"""`run.json`: what makes a run exist, and all that a joiner needs to know of it. And a request to join."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lowcomm.store import text
from lowcomm.store.commit import Announced
from lowcomm.store.layout import Layout
from lowcomm.types import PayloadError

FORMAT = 1
ARITHMETIC = "cpu-fp32"
"""Aggregation and outer step: fp32 on the CPU, so that all islands get the same bits."""
_DTYPE = re.compile(r"[a-z0-9]{1,20}")
_FIELDS = (
    "format", "run_id", "configuration", "fragments", "codec", "arithmetic", "tokenizer_sha256", "data", "stale",
    "keep", "lease_blocks", "target_tokens", "policy", "snapshot", "probe",
)  # fmt: skip
_JOIN = ("run_id", "name", "inc", "base", "nonce", "about", "expected_s", "most_payload_bytes")


@dataclass(frozen=True, kw_only=True)
class RunFile:
    """The fields of `run.json`, all of them data."""

    run_id: str
    configuration: Mapping[str, Any]
    """As `config_file.to_dict` has it; read back through allow-listed classes only."""
    fragments: tuple[tuple[tuple[str, tuple[int, ...], str], ...], ...]
    """By fragment, then tensor: name, shape, dtype."""
    codec: str
    """`ChainRules.codec_name`."""
    snapshot: Announced
    """Of version 0: stored before this file."""
    arithmetic: str = ARITHMETIC
    tokenizer_sha256: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    """kind ("shared" or "own"); shared: tokens, sha256, block_tokens, blocks."""
    stale: int = 8
    keep: int = 3
    lease_blocks: int = 1
    target_tokens: int | None = None
    policy: Mapping[str, Any] = field(default_factory=dict)
    probe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """By fragment."""
        return tuple(
            Layout(names=tuple(n for n, _, _ in tensors), shapes=tuple(s for _, s, _ in tensors))
            for tensors in self.fragments
        )

    def write(self) -> bytes:
        """Its canonical text."""
        return text.write({
            "format": FORMAT, "run_id": self.run_id, "configuration": dict(self.configuration),
            "fragments": [[[n, list(s), d] for n, s, d in tensors] for tensors in self.fragments], "codec": self.codec,
            "arithmetic": self.arithmetic, "tokenizer_sha256": self.tokenizer_sha256, "data": dict(self.data),
            "stale": self.stale, "keep": self.keep, "lease_blocks": self.lease_blocks,
            "target_tokens": self.target_tokens, "policy": dict(self.policy), "snapshot": self.snapshot.as_json(),
            "probe": dict(self.probe),
        })  # fmt: skip

    @classmethod
    def read(cls, raw: bytes) -> RunFile:
        """Raises PayloadError."""
        found = text.fields(text.read(raw), _FIELDS, "run.json")
        text.whole(found, "format", FORMAT, FORMAT)
        tokenizer, target = found["tokenizer_sha256"], found["target_tokens"]
        return cls(
            run_id=text.string(found, "run_id", text.INCARNATION),
            configuration=_mapping(found, "configuration"),
            fragments=tuple(
                tuple(_tensor(row) for row in text.rows({"fragment": tensors}, "fragment"))
                for tensors in text.rows(found, "fragments", 10_000)
            ),
            codec=text.string(found, "codec", most=100),
            arithmetic=text.string(found, "arithmetic", most=40),
            tokenizer_sha256=None if tokenizer is None else text.string(found, "tokenizer_sha256", text.SHA256),
            data=_mapping(found, "data"),
            stale=text.whole(found, "stale", 1, 1000),
            keep=text.whole(found, "keep", 2, 1000),
            lease_blocks=text.whole(found, "lease_blocks", 1),
            target_tokens=None if target is None else text.whole(found, "target_tokens", 1),
            policy=_mapping(found, "policy"),
            snapshot=Announced.of(found["snapshot"]),
            probe=_mapping(found, "probe"),
        )


@dataclass(frozen=True, kw_only=True)
class JoinRequest:
    """The fields of `joins/BASE/INC`."""

    run_id: str
    name: str
    inc: str
    base: int
    nonce: str
    about: Mapping[str, Any] = field(default_factory=dict)
    """Versions of code and torch, hardware: for people."""
    expected_s: float = 0.0
    """Seconds per round; 0: not known."""
    most_payload_bytes: int = 0
    """0: any."""

    def write(self) -> bytes:
        """Its canonical text."""
        return text.write({
            "run_id": self.run_id, "name": self.name, "inc": self.inc, "base": self.base, "nonce": self.nonce,
            "about": dict(self.about), "expected_s": self.expected_s, "most_payload_bytes": self.most_payload_bytes,
        })  # fmt: skip

    @classmethod
    def read(cls, raw: bytes) -> JoinRequest:
        """Raises PayloadError."""
        found = text.fields(text.read(raw), _JOIN, "a request to join")
        return cls(
            run_id=text.string(found, "run_id", text.INCARNATION),
            name=text.string(found, "name", text.NAME),
            inc=text.string(found, "inc", text.INCARNATION),
            base=text.whole(found, "base"),
            nonce=text.string(found, "nonce", text.INCARNATION),
            about=_mapping(found, "about"),
            expected_s=text.number(found, "expected_s"),
            most_payload_bytes=text.whole(found, "most_payload_bytes"),
        )


def _mapping(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(values[name], dict):
        raise PayloadError(f"{name} is {type(values[name]).__name__}, expected an object")
    return values[name]


def _tensor(row: Any) -> tuple[str, tuple[int, ...], str]:
    if not (isinstance(row, list) and len(row) == 3 and isinstance(row[1], list) and len(row[1]) <= 16):
        raise PayloadError(f"a tensor of run.json is {str(row)[:100]}, expected [name, shape, dtype]")
    name = text.string({"name": row[0]}, "name", most=500)
    shape = tuple(text.whole({"shape": size}, "shape", 0, 2**40) for size in row[1])
    return name, shape, text.string({"dtype": row[2]}, "dtype", _DTYPE)
