"""An island that is a pipeline: each rank syncs its stage with the same stage of the other islands.

The shape of DiLoCoX (arXiv 2506.21263): no rank ever sees another stage's weights, inside or across islands.
"""

from __future__ import annotations

from torch import Tensor, nn

from lowcomm.island.mesh import Mesh
from lowcomm.island.part import Part


class StagePart(Part):
    """All trainable parameters of one stage's module; a name may occur on one stage only."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh

    def held(self, model: nn.Module) -> dict[str, Tensor]:
        return {name: p for name, p in model.named_parameters() if p.requires_grad}
