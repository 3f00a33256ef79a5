"""What clients keep between their rounds, on disk: the same values, in no file that has a name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from lowcomm.codec import ErrorFeedback, TopK
from lowcomm.local import Scaffold
from lowcomm.outer import SGD
from lowcomm.plan.simulated import simulation_memory
from lowcomm.sampling import FixedSize
from lowcomm.state.shelf import Shelf
from lowcomm.state.spec import Clients, SyncSpec
from lowcomm.sync import LocalSGD
from lowcomm.transport import Simulated
from lowcomm.types import CheckpointError

CLIENTS = 5


def train(directory: Path | None, steps: int = 12) -> LocalSGD:
    """AdamW, error feedback and control variates; two of the clients in each round of two steps."""
    torch.manual_seed(0)
    model = nn.Linear(24, 24)
    inners = [torch.optim.AdamW(model.parameters(), lr=0.01) for _ in range(CLIENTS)]
    spec = SyncSpec(
        every=2,
        outer=SGD(lr=1.0),
        codec=ErrorFeedback(codec=TopK(chunk=64, k=8)),
        clients=Clients(sampling=FixedSize(count=2), objective=Scaffold()),
    )
    sync = LocalSGD.of(spec, [model], inners, transport=Simulated(CLIENTS), turns=True)
    if directory is not None:
        sync.listeners.append(Shelf(sync.state, directory).on_sync)
    for step in range(steps):
        for k in range(CLIENTS):
            if sync.rests(k):
                sync.rest(k)
                continue
            sync.take_turn(k, train=True)
            x = torch.randn(8, 24, generator=torch.Generator().manual_seed(100 * step + k))
            model(x).square().mean().backward()
            inners[k].step()
            inners[k].zero_grad()
    return sync


def kept(sync: LocalSGD) -> list[list[torch.Tensor]]:
    """All that belongs to each client between its rounds."""
    found: list[list[torch.Tensor]] = []
    for k, replica in enumerate(sync.replicas):
        own = [t for s in replica.inner.state.values() for t in s.values()]
        own += list(sync.state.codec_states[k][0].values())
        own += [t for hook in sync.state.hooks for t, _ in hook.kept(k)]
        found.append(own)
    return found


def test_disk_has_the_bits_of_memory_and_leaves_nothing(tmp_path: Path) -> None:
    memory, disk = train(None), train(tmp_path)
    for a, b in zip(memory.weights().values(), disk.weights().values(), strict=True):
        assert torch.equal(a, b)
    for own, same in zip(kept(memory), kept(disk), strict=True):
        assert len(own) == len(same)
        assert all(torch.equal(a, b) for a, b in zip(own, same, strict=True))
    assert list(tmp_path.iterdir()) == []
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    assert f"{tmp_path}" in maps  # what is kept lies in files without a name


def test_the_plan_says_what_clients_keep() -> None:
    """Moments, error feedback and variates of all clients, but for step counters and padding."""
    sync = train(None, steps=30)
    trained = sum(p.numel() for p in sync.replicas[0].params.values())
    assert all(r.inner.state for r in sync.replicas)
    actual = sum(t.numel() * t.element_size() for own in kept(sync) for t in own)
    need = simulation_memory(parameters=trained, trainable=trained, clients=CLIENTS, sampled=2, adamw=True, kept=2)
    assert need.kept_bytes == pytest.approx(actual, rel=0.01)


def test_a_disk_that_takes_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"could not be written to .*gone.*client_state"):
        train(tmp_path / "gone")
