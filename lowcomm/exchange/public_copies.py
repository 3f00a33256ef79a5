"""The public copies of gossip with a compressing codec: what each island knows of a neighbour, and it of the island.

Koloskova, Stich, Jaggi, CHOCO-SGD, arXiv 1902.00340 (its xhat, one pair per edge and end).

    send q = encode(x_k - sent_kj);   both ends: copy += decode(q);   sent_kj on k = heard_jk on j, bit for bit

What a codec did not send stays in x_k - sent_kj and is sent later: a copy is its own error feedback. All copies begin
as the weights on which the islands agreed in the handshake. Copies that differ at the two ends (after a payload that
was refused, or on devices that decode to other bits) begin there again, at both ends and for both directions, and the
two leave each other out for that round. They are not sent whole: the size of a message would then depend on what one
end alone may know, and the other would wait for bytes that do not come.
Memory: two fp32 vectors per neighbour that an island ever had, and one for the beginning. Bytes: the codec's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lowcomm.codec import Codec
from lowcomm.state.anchor import Anchor
from lowcomm.state.digest import digest
from lowcomm.types import Part, Round

PREFIX = "gossip"
Edge = tuple[int, int, int]
"""Fragment, local island, neighbour (the number of the island)."""


def contraction(codec: Codec) -> float:
    """CHOCO's delta: the share of a random vector's energy (128 x 128, normal) that one message brings to a copy.

    1: all of it. 0 or less: copies would move away from what they are copies of.
    """
    drawn = {"probe": torch.randn(128, 128, generator=torch.Generator().manual_seed(0))}
    first = Round(index=0, step=0, fragments=(0,), seed=0, island=0)
    payload, _ = codec.encode(drawn, codec.init(drawn), first)
    missing = codec.decode(payload, drawn, first)["probe"] - drawn["probe"]
    return 1 - float(missing.square().sum() / drawn["probe"].square().sum())


class PublicCopies:
    """Copies of one process's islands by edge: flat, fp32, of the fragment's size."""

    def __init__(self, anchors: Sequence[Sequence[Anchor]]) -> None:
        self.first = [shared[0].weights.clone() for shared in anchors]
        """By fragment: where copies begin."""
        self.numels = [shared[0].fragment.numel for shared in anchors]
        self.sent: dict[Edge, Tensor] = {}
        """What the neighbour knows of the island."""
        self.heard: dict[Edge, Tensor] = {}
        """What the island knows of the neighbour."""

    def meet(self, edge: Edge) -> None:
        """Have copies of this edge: new ones where the two never met."""
        if edge not in self.sent:
            self.reset(edge)

    def reset(self, edge: Edge) -> None:
        """Begin again."""
        self.sent[edge], self.heard[edge] = self.first[edge[0]].clone(), self.first[edge[0]].clone()

    def digests(self, edge: Edge) -> tuple[bytes, bytes]:
        """8 bytes each of `sent` and `heard`."""
        return digest(self.sent[edge])[:8], digest(self.heard[edge])[:8]

    def global_part(self) -> Part:
        """Where copies begin, without padding."""
        return {f"{PREFIX}.first.{i}": t[: self.numels[i]] for i, t in enumerate(self.first)}, {}

    def load_global(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `global_part` gave."""
        for i, first in enumerate(self.first):
            first[: self.numels[i]].copy_(tensors[f"{PREFIX}.first.{i}"])

    def island_part(self, local: int) -> Part:
        """The copies of a local island."""
        sides = (("sent", self.sent), ("heard", self.heard))
        return {
            f"{PREFIX}.{side}.{index}.{neighbour}": copy[: self.numels[index]]
            for side, copies in sides
            for (index, island, neighbour), copy in copies.items()
            if island == local
        }, {}

    def load_island(self, local: int, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `island_part` gave, and nothing else."""
        for edge in [e for e in self.sent if e[1] == local]:
            del self.sent[edge], self.heard[edge]
        for key in tensors:
            if key.startswith(f"{PREFIX}.sent."):
                index, neighbour = (int(x) for x in key.split(".")[2:])
                edge = (index, local, neighbour)
                self.reset(edge)
                self.sent[edge][: self.numels[index]].copy_(tensors[key])
                self.heard[edge][: self.numels[index]].copy_(tensors[f"{PREFIX}.heard.{index}.{neighbour}"])
