"""Facts of a run that every member must have alike: tensors, tokenizer, text, base weights. Compared, never fetched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from torch import Tensor, nn

from lowcomm.config import RunConfig
from lowcomm.data import Data
from lowcomm.data.windows import WindowShard
from lowcomm.state.coverage import check_partition, prove
from lowcomm.state.digest import digest_all
from lowcomm.store.run_file import RunFile
from lowcomm.storerun.blocks import BlockSizes
from lowcomm.storerun.plan import choice_of, shares_data
from lowcomm.types import ConfigError, DivergenceError

Tensors = tuple[tuple[str, tuple[int, ...], str], ...]
"""Name, shape and dtype of a fragment's tensors."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What this machine has."""

    fragments: tuple[Tensors, ...]
    tokenizer_sha256: str
    data: Mapping[str, Any]

    @classmethod
    def of(cls, config: RunConfig, model: nn.Module, data: Data, islands: int) -> Facts:
        """islands: the number that the run is made for. Raises ConfigError."""
        return cls(
            fragments=tuple(tuple(_tensor(n, t) for n, t in named.items()) for named in parted(config, model)),
            tokenizer_sha256=sha256(data.tokenizer_name.encode()).hexdigest(),
            data=_data(config, data, islands) | {"frozen": _frozen(config, model)},
        )

    def check(self, run: RunFile) -> None:
        """Raise DivergenceError, naming the first fact in which this machine differs from the run's."""
        if self.fragments != run.fragments:
            raise DivergenceError(_first_tensor(run.fragments, self.fragments))
        if self.tokenizer_sha256 != run.tokenizer_sha256:
            raise DivergenceError(
                f"tokenizer: the run's has sha256 {run.tokenizer_sha256}, the one here {self.tokenizer_sha256}. Fix: "
                "use the same files and the same version of tokenizers"
            )
        for key in sorted({*run.data, *self.data}):
            theirs, mine = run.data.get(key), self.data.get(key)
            if theirs != mine:
                what = {"sha256": "the training text", "tokens": "its number of tokens", "frozen": "the base weights"}
                raise DivergenceError(
                    f"{what.get(key, key)}: the run has {theirs!r}, this machine {mine!r}. Fix: give this machine the "
                    "same files and versions, or start a run of its own"
                )


def parted(config: RunConfig, model: nn.Module) -> list[dict[str, Tensor]]:
    """Trainable parameters by fragment. Raises ConfigError, CoverageError."""
    coverage = prove(model, config.sync.buffers or {})
    if coverage.averaged_buffers:
        raise ConfigError(
            f"sync.buffers = {config.sync.buffers} is not allowed with sync.exchange = Store: "
            f"{coverage.averaged_buffers[0]} would be averaged in a second exchange. Fix: --sync.buffers '*' local"
        )
    held = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    parts = config.sync.schedule.partition({n: t.numel() for n, t in held.items()})
    check_partition(list(held), parts)
    return [{n: held[n] for n in part} for part in parts]


def _tensor(name: str, tensor: Tensor) -> tuple[str, tuple[int, ...], str]:
    return name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")


def _data(config: RunConfig, data: Data, islands: int) -> dict[str, Any]:
    if not shares_data(config):
        return {"kind": "own", "islands": islands}
    sizes = BlockSizes.of(config, choice_of(config), islands)
    shard = data.shard(0)
    if not isinstance(shard, WindowShard):
        raise ConfigError(
            "data.source is not allowed with sync.exchange = Store: what is streamed has no blocks that members could "
            "lease. Fix: read it first (--data.source.no-streaming), or pass --data.sharding own"
        )
    return {
        "kind": "shared",
        "islands": islands,
        "tokens": data.stats["train_tokens"],
        "sha256": shard.state_dict()["text_sha256"],
        "block_tokens": sizes.tokens,
        "block_steps": sizes.steps,
        "blocks": sizes.count,
    }


def _frozen(config: RunConfig, model: nn.Module) -> str | None:
    """Digest of what is not trained; None: everything is."""
    frozen = {n: p for n, p in model.named_parameters() if not p.requires_grad}
    return digest_all(frozen).hex() if frozen else None


def _first_tensor(theirs: tuple[Tensors, ...], mine: tuple[Tensors, ...]) -> str:
    rows = [(t, m) for a, b in zip(theirs, mine, strict=False) for t, m in zip(a, b, strict=False) if t != m]
    if not rows:
        counts = [sum(map(len, side)) for side in (theirs, mine)]
        return f"the model: the run has {counts[0]} tensors, this machine {counts[1]}. Fix: use the same model"
    (name, shape, dtype), (other, here, kind) = rows[0]
    return (
        f"the model: the run has {name} {tuple(shape)} {dtype} where this machine has {other} {tuple(here)} {kind}. "
        "Fix: use the same versions of lowcomm and transformers"
    )
