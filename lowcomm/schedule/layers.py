"""How a model is cut into fragments: by its layers in turn, or by size."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from lowcomm.types import ConfigError

_LAYER = re.compile(r"\.(\d+)\.")


def count_layers(names: Iterable[str]) -> int:
    """Layers that `strided` deals out; 1 for a model without numbered ones."""
    return max(1, len({found[1] for name in names if (found := _LAYER.search(name))}))


def strided(sizes: Mapping[str, int], fragments: int) -> list[list[str]]:
    """Layer l goes to fragment l modulo `fragments`; what belongs to no layer, to the fragment that is smallest then.

    Raises ConfigError for more fragments than layers.
    """
    layers = {name: int(found[1]) for name in sizes if (found := _LAYER.search(name))}
    number = len(set(layers.values()))
    if fragments > max(1, number):
        raise ConfigError(
            f"sync.schedule.fragments = {fragments} must be 1 to {max(1, number)}, the model's layers. "
            f"Fix: --sync.schedule.fragments {max(1, number)}, or --sync.schedule.by size"
        )
    order = {layer: i for i, layer in enumerate(sorted(set(layers.values())))}
    parts: list[list[str]] = [[] for _ in range(fragments)]
    for name, layer in layers.items():
        parts[order[layer] % fragments].append(name)
    for name in sizes:
        if name not in layers:
            min(parts, key=lambda part: sum(sizes[n] for n in part)).append(name)
    return parts


def by_size(sizes: Mapping[str, int], fragments: int) -> list[list[str]]:
    """Neighbours stay together; each fragment ends nearest to its equal share. Raises ConfigError for too many."""
    names, total = list(sizes), sum(sizes.values())
    if fragments > len(names):
        raise ConfigError(
            f"sync.schedule.fragments = {fragments} must be 1 to {len(names)}, the model's tensors. "
            f"Fix: --sync.schedule.fragments {len(names)} or less"
        )
    parts: list[list[str]] = []
    done, at = 0, 0
    for k in range(fragments):
        part = [names[at]]
        done, at = done + sizes[names[at]], at + 1
        goal = total * (k + 1) / fragments
        while at < len(names) - (fragments - k - 1) and done + sizes[names[at]] / 2 <= goal:
            part.append(names[at])
            done, at = done + sizes[names[at]], at + 1
        parts.append(part)
    parts[-1].extend(names[at:])
    return parts
