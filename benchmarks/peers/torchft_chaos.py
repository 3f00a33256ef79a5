"""A replica of torchft's DiLoCo that a fault comes to: `python -m benchmarks.peers.torchft_chaos PLAN.json`.

The plan: replica, lighthouse, rounds, every, fault, phase, round (of this replica's fault; null: none), out. It writes
a line of JSON after each committed round, and at its end the digest of its weights and their validation loss.
torchft listens on all addresses: run it on a private machine only.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore
from torchft import Manager, ProcessGroupGloo  # pyright: ignore[reportMissingImports]
from torchft.local_sgd import DiLoCo  # pyright: ignore[reportMissingImports]

from lowcomm.chaos.default_run import default_run
from lowcomm.data import build_data
from lowcomm.island import PlainIsland
from lowcomm.model import token_losses
from lowcomm.run.assembly import build_models
from lowcomm.state.digest import sha256_weights

WAIT = timedelta(seconds=10)
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}


class Replica:
    """Model, shard and manager; the launcher starts the lighthouse and whoever dies."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan, config = plan, default_run()
        islands, number = plan["replicas"], plan["replica"]
        self.data = build_data(config.data, islands, config.seed)
        self.model = build_models(config, self.data, 1, torch.device("cpu"))[0]
        self.shard = self.data.shard(number)
        seed = config.seed * 1_000_003 + number
        self.island = PlainIsland(
            self.model, config.inner, steps=plan["rounds"] * plan["every"], seed=seed, losses=token_losses
        )
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.manager = Manager(
            pg=ProcessGroupGloo(timeout=WAIT), min_replica_size=1, load_state_dict=self.model.load_state_dict,
            state_dict=self.model.state_dict, use_async_quorum=False, replica_id=f"island{number}",
            store_addr="127.0.0.1", store_port=store.port, rank=0, world_size=1, lighthouse_addr=plan["lighthouse"],
            hostname="127.0.0.1", timeout=WAIT, quorum_timeout=WAIT, connect_timeout=WAIT,
        )  # fmt: skip
        self.store = store
        self.outer = torch.optim.SGD(self.model.parameters(), lr=0.7, momentum=0.6, nesterov=True)
        self.out = os.open(plan["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, line: dict[str, Any]) -> None:
        """A line of the record."""
        os.write(self.out, (json.dumps({**line, "at": time.monotonic()}) + "\n").encode())

    def fault(self, phase: str) -> None:
        """What comes to this replica here and now, once."""
        plan = self.plan
        if plan["round"] is None or plan["phase"] != phase or self.manager.current_step() < plan["round"]:
            return
        plan["round"] = None
        self.write({"event": "fault", "pid": os.getpid()})
        if plan["fault"] in SIGNALS:
            os.kill(os.getpid(), SIGNALS[plan["fault"]])
        factor = {"nan": math.nan, "blow-up": 1e6}.get(plan["fault"])
        if factor is not None:
            with torch.no_grad():
                for p in self.model.parameters():
                    p.mul_(factor)

    def live(self) -> None:
        """Train until all rounds are committed."""
        steps, before = 0, self.manager.current_step()
        reduce: Callable[..., Any] = self.manager.allreduce

        def reducing(tensor: torch.Tensor, should_quantize: bool = False) -> Any:
            started = reduce(tensor, should_quantize=should_quantize)
            self.fault("upload")
            return started

        self.manager.allreduce = reducing
        with DiLoCo(self.manager, [self.model], self.island.inner, self.outer, self.plan["every"]):
            while self.manager.current_step() < self.plan["rounds"]:
                self.fault("step")
                self.island.backward([self.shard.next_batch()])
                self.island.update(min(steps, self.plan["rounds"] * self.plan["every"] - 1))
                steps += 1
                time.sleep(self.plan["pause_s"])
                if self.manager.current_step() != before:
                    before = self.manager.current_step()
                    self.write({"event": "round", "round": before})


def main() -> None:
    """One replica's life."""
    torch.set_num_threads(1)
    replica = Replica(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    replica.live()
    weights = {name: p.detach().clone() for name, p in replica.model.named_parameters()}
    with torch.no_grad():
        losses = [token_losses(replica.model, x, y).mean() for x, y in replica.data.validation_batches()]
    loss = float(torch.stack(losses).mean())
    replica.write(
        {"event": "end", "weights": sha256_weights(weights), "val_loss": loss if math.isfinite(loss) else None}
    )
    replica.manager.shutdown(wait=False)
    os._exit(0)


if __name__ == "__main__":
    main()
