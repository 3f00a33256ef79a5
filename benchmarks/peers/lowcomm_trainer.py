"""lowcomm: the trainer's own loop under the recipe's sync."""

from __future__ import annotations

from torch import nn

from benchmarks.peers.session import Session, run
from lowcomm.run.assembly import assemble
from lowcomm.run.resume import start_files
from lowcomm.trainer import Loop


class Trainer:
    """`lowcomm train` step by step, with its logging."""

    def __init__(self, session: Session) -> None:
        made = assemble(session.config, session.data, session.world)
        start_files(made)
        self.loop, self.sync = Loop(made), made.sync
        self.model: nn.Module = made.islands[0].model

    def step(self) -> None:
        self.loop.step()
        self.loop.after_step()

    def settle(self) -> None:
        self.sync.wait()

    def own_sent_bytes(self) -> int:
        return self.sync.transport.sent_bytes[0]

    def finish(self) -> nn.Module:
        self.sync.finish()
        return self.model


if __name__ == "__main__":
    run(Trainer)
