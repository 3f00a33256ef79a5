"""The coverage proof: every trainable parameter is in exactly one fragment, every buffer is named.

Answers systems that skip a tensor, count tied weights twice or never average a buffer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from lowcomm.state.replica import Replica
from lowcomm.state.spec import BufferRule
from lowcomm.types import CoverageError


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Names in the model's order. Tied weights appear once, under their first name."""

    trainable: tuple[str, ...]
    frozen: tuple[str, ...]
    averaged_buffers: tuple[str, ...]
    local_buffers: tuple[str, ...]


def prove(model: nn.Module, buffers: Mapping[str, BufferRule]) -> Coverage:
    """Sort the model's tensors; raise CoverageError for one that would go unsynchronised.

    buffers: rule by name pattern (fnmatch).
    Non-persistent buffers (recomputed constants, such as rotary tables) are local without a rule.
    """
    parameters = dict(model.named_parameters())
    trainable = tuple(name for name, p in parameters.items() if p.requires_grad)
    if not trainable:
        raise CoverageError("the model has no trainable parameter: set requires_grad on what is to be trained")
    for name, tensor in (*parameters.items(), *model.named_buffers()):
        if tensor.is_meta:
            raise CoverageError(f"{name} is on the meta device, without values: load or initialise the model first")
    for name in trainable:
        if not parameters[name].is_floating_point():
            raise CoverageError(f"parameter {name} has dtype {parameters[name].dtype}: only real floats are averaged")
    averaged, local = _sort_buffers(model, buffers)
    frozen = tuple(name for name, p in parameters.items() if not p.requires_grad)
    return Coverage(trainable=trainable, frozen=frozen, averaged_buffers=averaged, local_buffers=local)


def _sort_buffers(model: nn.Module, rules: Mapping[str, BufferRule]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    for pattern, rule in rules.items():
        if rule not in ("average", "local"):
            raise CoverageError(f"buffers has the rule {rule!r} for {pattern!r}: pass 'average' or 'local'")
    persistent = set(model.state_dict(keep_vars=True))
    averaged: list[str] = []
    local: list[str] = []
    unnamed: dict[str, Tensor] = {}
    for name, buffer in model.named_buffers():
        rule = next((r for pattern, r in rules.items() if fnmatchcase(name, pattern)), None)
        if rule == "average":
            if not buffer.is_floating_point():
                raise CoverageError(f"buffer {name} has dtype {buffer.dtype} and cannot be averaged: name it 'local'")
            averaged.append(name)
        elif rule == "local" or name not in persistent:
            local.append(name)
        else:
            unnamed[name] = buffer
    if unnamed:
        raise UnnamedBuffersError(unnamed)
    for pattern in rules:
        if not any(fnmatchcase(name, pattern) for name, _ in model.named_buffers()):
            known = sorted({name.rpartition(".")[2] for name, _ in model.named_buffers()})
            raise CoverageError(f"buffers has the pattern {pattern!r}, which matches no buffer of the model: {known}")
    return tuple(averaged), tuple(local)


class UnnamedBuffersError(CoverageError):
    """Persistent buffers that no rule names. `rules` has one for each kind: averaged, or local if they can't be."""

    def __init__(self, unnamed: Mapping[str, Tensor]) -> None:
        self.rules: dict[str, BufferRule] = {}
        for name, buffer in unnamed.items():
            rule: BufferRule = "average" if buffer.is_floating_point() else "local"
            self.rules.setdefault(f"*{name.rpartition('.')[2]}", rule)
        first = next(iter(unnamed))
        self.cause = (
            f"buffer {first} {tuple(unnamed[first].shape)} is named nowhere: islands would keep their own copies unseen"
        )
        super().__init__(f"{self.cause}. Pass buffers={self.rules}, or 'local' for what each island keeps to itself.")


def check_partition(trainable: Sequence[str], parts: Sequence[Sequence[str]]) -> None:
    """Raise CoverageError unless the parts cover every trainable name exactly once."""
    seen: dict[str, int] = {}
    for i, part in enumerate(parts):
        if not part:
            raise CoverageError(f"fragment {i} is empty: use fewer fragments")
        for name in part:
            if name in seen:
                raise CoverageError(f"parameter {name} is in fragments {seen[name]} and {i}: it must be in one")
            seen[name] = i
    missing = [name for name in trainable if name not in seen]
    if missing:
        raise CoverageError(f"{len(missing)} trainable parameters are in no fragment, the first is {missing[0]}")
    extra = [name for name in seen if name not in set(trainable)]
    if extra:
        raise CoverageError(f"fragments name {extra[0]}, which is no trainable parameter of the model")


def check_still_covered(replicas: Sequence[Replica]) -> None:
    """Raise CoverageError if a parameter was unfrozen, frozen or replaced, or a foreign one given to the optimizer."""
    known: dict[int, list[Tensor]] = {}
    for replica in replicas:
        if (parameters := known.get(id(replica.model))) is not None:
            if not replica.idle:  # else it has moved nothing
                replica.part.check_inner(parameters, replica.inner)
            continue
        named = dict(replica.model.named_parameters())
        known[id(replica.model)] = list(named.values())
        now = {name: id(p) for name, p in named.items() if p.requires_grad}
        then = {name: id(p) for name, p in replica.params.items()}
        if now != then:
            changed = sorted(set(now.items()) ^ set(then.items()))[0][0]
            raise CoverageError(
                f"parameter {changed} was frozen, unfrozen or replaced since the sync was set up: build a new LocalSGD "
                "with a new inner optimizer"
            )
        replica.part.check_inner(known[id(replica.model)], replica.inner)
