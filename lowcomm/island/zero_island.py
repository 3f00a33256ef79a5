"""The island that trains with a DeepSpeed engine: ZeRO 1, 2 or 3 over its ranks, gloo on the CPU, NCCL on GPUs."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lowcomm.island.config import IslandConfig
from lowcomm.island.ddp_island import rows_of
from lowcomm.island.inner import InnerConfig
from lowcomm.island.mesh import Mesh
from lowcomm.island.plain import Batch, LossFn, PlainIsland, counted_tokens
from lowcomm.island.zero import EngineOptimizer, MeshUnit, ZeROPart
from lowcomm.types import ConfigError


class ZeROIsland(PlainIsland):
    """One rank of it."""

    def __init__(
        self,
        model: nn.Module,
        config: InnerConfig,
        mesh: Mesh,
        island: IslandConfig,
        *,
        steps: int,
        seed: int,
        losses: LossFn,
        rows: int,
        bf16: bool,
    ) -> None:
        """rows: sequences of a micro-batch that this rank trains on."""
        super().__init__(model, config, steps=steps, seed=seed, losses=losses)
        self.mesh, self.stage = mesh, int(island.kind.removeprefix("zero"))
        self.engine = start_engine(model, self.inner, settings(config, island, rows, bf16), mesh)
        self.forward_model = cast("nn.Module", self.engine)
        self.inner = EngineOptimizer(self.engine)
        self.part = ZeROPart(self.engine, mesh)

    def own_rows(self, batch: Batch) -> Batch:
        return rows_of(batch, self.mesh)

    def backward(self, batches: Sequence[Batch]) -> float:
        self._swap_in()
        tokens = counted_tokens(batches) / (len(batches) * self.mesh.size)  # the engine takes means over both
        total = 0.0
        for number, batch in enumerate(batches, start=1):
            inputs, targets = self.own_rows(batch)
            loss = self.losses(self.forward_model, inputs.to(self.device), targets.to(self.device)).sum() / tokens
            self.engine.backward(loss)  # divides by the number of micro-batches
            total += float(loss.detach()) / len(batches)
            if number < len(batches):
                self.engine.step()  # counts a micro-batch
        self._swap_out_rng()
        return total

    def update(self, step: int) -> None:
        assert isinstance(self.inner, EngineOptimizer)
        self.inner.set_lr(self.lr(step))
        self.inner.step()
        if self.config.clip_norm is not None:
            self.grad_norm = float(self.engine.get_global_grad_norm())

    def token_losses(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return self.losses(self.forward_model, inputs.to(self.device), targets.to(self.device))

    def parameter_counts(self) -> tuple[int, int]:
        counts = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in self.model.parameters()]
        return sum(n for n, _ in counts), sum(n for n, trained in counts if trained)

    def whole_state(self) -> dict[str, Tensor] | None:
        if self.stage != 3:
            return None
        return cast("dict[str, Tensor] | None", self.engine._zero3_consolidated_16bit_state_dict())


def settings(config: InnerConfig, island: IslandConfig, rows: int, bf16: bool) -> dict[str, Any]:
    """DeepSpeed's configuration of an island."""
    zero: dict[str, Any] = {"stage": int(island.kind.removeprefix("zero"))}
    if island.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": rows,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.clip_norm or 0.0,  # left out it would be 1
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": bf16},
    }


def start_engine(model: nn.Module, inner: torch.optim.Optimizer, config: dict[str, Any], mesh: Mesh) -> Any:
    """A DeepSpeedEngine whose data parallelism is this island. Raises ConfigError without the package."""
    if next(model.parameters()).device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # read when the package is imported
    try:
        import deepspeed
        from deepspeed.utils import logger
    except ImportError as error:
        raise ConfigError(
            f"island.kind = 'zero...' is not allowed: deepspeed is not installed ({error}). "
            "Fix: pip install lowcomm[deepspeed]"
        ) from error
    logger.setLevel(logging.WARNING)
    # a shared-memory kernel for inference, which it would compile on every machine
    cast("Any", deepspeed.ops).__compatible_ops__["deepspeed_shm_comm"] = False
    alone = [dist.new_group([rank]) for rank in range(dist.get_world_size())][dist.get_rank()]
    assert isinstance(alone, dist.ProcessGroup)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=inner, config=config, mpu=MeshUnit(mesh, alone), dist_init_required=False
    )
    return engine
