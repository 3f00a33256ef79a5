"""accelerate's LocalSGD: parameters averaged every H steps, training waits."""

from __future__ import annotations

from accelerate import Accelerator  # pyright: ignore[reportMissingImports]
from accelerate.local_sgd import LocalSGD  # pyright: ignore[reportMissingImports]
from accelerate.utils import InitProcessGroupKwargs  # pyright: ignore[reportMissingImports]
from torch import nn

from benchmarks.peers.session import Session, run


class AccelerateLocalSgd:
    """Its own wrapper and its own averaging, over gloo."""

    def __init__(self, session: Session) -> None:
        accelerator = Accelerator(cpu=True, kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")])
        self.model = session.model()
        wrapped = accelerator.prepare(self.model)
        self.island, self.shard, self.steps = session.island(self.model, wrapped), session.shard(), 0
        self.local_sgd = LocalSGD(accelerator=accelerator, model=wrapped, local_sgd_steps=session.config.sync.every)
        self.local_sgd.__enter__()

    def step(self) -> None:
        self.island.backward([self.shard.next_batch()])
        self.island.update(self.steps)
        self.local_sgd.step()
        self.steps += 1

    def settle(self) -> None:
        return

    def own_sent_bytes(self) -> None:
        return None

    def finish(self) -> nn.Module:
        self.local_sgd.__exit__(None, None, None)
        return self.model


if __name__ == "__main__":
    run(AccelerateLocalSgd)
