"""The island that trains as a 1F1B pipeline: one stage of the model per rank (torch.distributed.pipelining)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lowcomm.island.inner import InnerConfig
from lowcomm.island.mesh import Mesh
from lowcomm.island.part import Part, gather_texts
from lowcomm.island.plain import Batch, LossFn, PlainIsland, counted_tokens
from lowcomm.island.stage_module import StageModule


class StagePart(Part):
    """All trainable parameters of one stage's module; a name may occur on one stage only."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh

    def held(self, model: nn.Module) -> dict[str, Tensor]:
        return {name: p for name, p in model.named_parameters() if p.requires_grad}


class PipelineIsland(PlainIsland):
    """One rank of it: `model` is its stage."""

    def __init__(
        self, model: nn.Module, config: InnerConfig, mesh: Mesh, *, steps: int, seed: int, losses: LossFn, parts: int
    ) -> None:
        """parts: micro-batches that each batch is cut into for the pipeline; `losses` is not used."""
        self.stage_module = StageModule(model, mesh.rank, mesh.size)
        super().__init__(self.stage_module, config, steps=steps, seed=seed, losses=losses)
        self.mesh, self.parts = mesh, parts
        self.part = StagePart(mesh)
        self._schedules: dict[torch.Size, Any] = {}
        self._tokens = 1.0
        """Counted tokens of a micro-batch on average over the step."""

    def backward(self, batches: Sequence[Batch]) -> float:
        self._swap_in()
        total = 0.0
        self._tokens = counted_tokens(batches) / (self.parts * len(batches))
        for inputs, targets in batches:
            schedule, losses = self._schedule(inputs.shape), list[Tensor]()
            fed = (inputs.to(self.device),) if self.stage_module.first else ()
            if self.stage_module.last:
                schedule.step(*fed, target=targets.to(self.device), losses=losses, return_outputs=False)
                total += float(torch.stack(losses).mean().detach()) / len(batches)
            else:
                schedule.step(*fed, return_outputs=False)
        for p in self.params:
            if p.grad is not None:
                p.grad.div_(self.parts * len(batches))
        self._swap_out_rng()
        return float(self.mesh.rows(torch.tensor([total])).sum())  # the last stage alone has the loss

    def clip(self, clip_norm: float) -> float:
        gradients = [p.grad for p in self.params if p.grad is not None]
        own = nn.utils.get_total_norm(gradients).reshape(1)
        norm = torch.linalg.vector_norm(self.mesh.rows(own.to(self.device)))
        nn.utils.clip_grads_with_norm_(self.params, clip_norm, norm)
        return float(norm)

    def token_losses(self, inputs: Tensor, targets: Tensor) -> Tensor:
        batch, length = inputs.shape
        hidden = torch.empty(batch, length, self.stage_module.config.hidden_size, device=self.device)
        x = inputs.to(self.device)
        if not self.stage_module.first:
            dist.recv(hidden, group_src=self.mesh.rank - 1, group=self.mesh.inside)
            x = hidden
        out = self.stage_module(x)
        losses = torch.empty(batch * length, device=self.device)
        if self.stage_module.last:
            flat = out.float().flatten(0, 1)
            losses = nn.functional.cross_entropy(flat, targets.to(self.device).flatten(), reduction="none")
        else:
            dist.send(out.contiguous(), group_dst=self.mesh.rank + 1, group=self.mesh.inside)
        dist.broadcast(losses, group_src=self.mesh.size - 1, group=self.mesh.inside)
        return losses

    def parameter_counts(self) -> tuple[int, int]:
        counts = self.mesh.rows(torch.tensor(super().parameter_counts(), device=self.device)).sum(dim=0)
        return int(counts[0]), int(counts[1])

    def whole_state(self) -> dict[str, Tensor] | None:
        own = {name: t.detach() for name, t in self.model.state_dict().items()}
        shapes = [
            json.loads(row) for row in gather_texts(self.mesh, json.dumps({n: [*t.shape] for n, t in own.items()}))
        ]
        if self.mesh.rank:
            for tensor in own.values():
                dist.send(tensor.contiguous(), group_dst=0, group=self.mesh.inside)
            return {}
        state = {name: t.cpu() for name, t in own.items()}
        for rank in range(1, self.mesh.size):
            for name, shape in shapes[rank].items():
                tensor = torch.empty(shape, device=self.device)
                dist.recv(tensor, group_src=rank, group=self.mesh.inside)
                state[name] = tensor.cpu()
        return state

    def _schedule(self, shape: torch.Size) -> Any:
        """The 1F1B schedule for batches of this shape [batch, seq_len]; shapes are given, none is asked of a peer."""
        if shape not in self._schedules:
            from torch.distributed.pipelining import PipelineStage, Schedule1F1B

            batch, length = shape[0] // self.parts, shape[1]
            module, config = self.stage_module, self.stage_module.config
            ids = torch.empty(batch, length, dtype=torch.int64, device="meta")
            hidden = torch.empty(batch, length, config.hidden_size, device="meta", requires_grad=True)
            logits = torch.empty(batch, length, config.vocab_size, device="meta", requires_grad=True)
            stage = PipelineStage(
                module,
                self.mesh.rank,
                self.mesh.size,
                self.device,
                input_args=ids if module.first else hidden,
                output_args=logits if module.last else hidden,
                group=self.mesh.inside,
            )
            # not scaled there: that would scale what earlier micro-batches of the step have left, too
            self._schedules[shape] = Schedule1F1B(stage, self.parts, loss_fn=self._loss, scale_grads=False)
        return self._schedules[shape]

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """A micro-batch's share of the step's mean loss in nats: logits [batch, seq_len, vocabulary], targets int64."""
        losses = nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")
        return losses / self._tokens
