"""torchft's DiLoCo over its gloo group: one replica group of one process per island, the lighthouse on island 0.

torchft has no setting for the address that it listens on: it takes all. Run it on a private network only.
"""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from torch import nn
from torch.distributed import TCPStore
from torchft import Manager, ProcessGroupGloo  # pyright: ignore[reportMissingImports]
from torchft.coordination import LighthouseServer  # pyright: ignore[reportMissingImports]
from torchft.local_sgd import DiLoCo  # pyright: ignore[reportMissingImports]

from benchmarks.headline_recipes import OUTER_LR, OUTER_MOMENTUM
from benchmarks.peers.session import Session, run

LIGHTHOUSE_PORT_STEP, STORE_PORT_STEP = 2, 3
WAIT = timedelta(seconds=600)
"""Long enough for a sync over the slowest link; torchft's own 60 s is for failures, which this does not test."""


class TorchftDiloco:
    """Plain DiLoCo with torchft's defaults: one all-reduce per parameter, training waits."""

    def __init__(self, session: Session) -> None:
        rank, own, self.every = session.world.rank, os.environ["HOST_ADDR"], session.config.sync.every
        lighthouse_port = session.port + LIGHTHOUSE_PORT_STEP
        if rank == 0:
            bind = f"{session.address}:{lighthouse_port}"
            self.lighthouse = LighthouseServer(bind=bind, min_replicas=session.world.size, join_timeout_ms=10_000)
        session.meet()
        port = session.port + STORE_PORT_STEP + rank
        self.group_store = TCPStore(own, port, is_master=True, wait_for_workers=False)
        self.model = session.model()
        self.island, self.shard, self.steps = session.island(self.model), session.shard(), 0
        self.manager = Manager(
            pg=ProcessGroupGloo(timeout=WAIT),
            min_replica_size=session.world.size,
            load_state_dict=self.model.load_state_dict,
            state_dict=self.model.state_dict,
            use_async_quorum=False,
            replica_id=f"island{rank}",
            store_addr=own,
            store_port=port,
            rank=0,
            world_size=1,
            lighthouse_addr=f"http://{session.address}:{lighthouse_port}",
            hostname=own,
            timeout=WAIT,
            quorum_timeout=WAIT,
            init_sync=False,
        )
        outer = torch.optim.SGD(self.model.parameters(), lr=OUTER_LR, momentum=OUTER_MOMENTUM, nesterov=True)
        self.diloco = DiLoCo(self.manager, [self.model], self.island.inner, outer, self.every)
        self.diloco.__enter__()

    def step(self) -> None:
        self.island.backward([self.shard.next_batch()])
        self.island.update(self.steps)
        self.steps += 1

    def settle(self) -> None:
        return

    def own_sent_bytes(self) -> None:
        return None

    def finish(self) -> nn.Module:
        rounds, expected = self.manager.current_step(), self.steps // self.every
        if rounds != expected:
            raise RuntimeError(f"torchft committed {rounds} of {expected} rounds")
        return self.model


if __name__ == "__main__":
    run(TorchftDiloco)
