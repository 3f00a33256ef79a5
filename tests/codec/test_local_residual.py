"""What a codec could not send stays in the island's weights: nothing is lost, nothing is sent twice."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lowcomm.codec import ErrorFeedback, Fp8, Int4, LocalResidual, TopK
from lowcomm.outer import SGD
from lowcomm.schedule import EveryH, LateMerge, OneStepDelay, Schedule, Streaming
from lowcomm.state.checkpoint import island_part
from lowcomm.sync import LocalSGD
from lowcomm.transport import Simulated
from lowcomm.types import ConfigError, Round, SyncError
from tests.support import toy

SPARSE = LocalResidual(codec=TopK(chunk=64, k=8, bits=16))


def local(sync: LocalSGD, island: int) -> Tensor:
    return toy.flat(list(sync.replicas[island].params.values()))


def merged(sync: LocalSGD) -> Tensor:
    return toy.flat(list(sync.weights().values()))


def test_what_is_sent_and_what_stays_are_the_delta() -> None:
    delta = {"w": torch.randn(10, 13, generator=torch.Generator().manual_seed(1))}
    now = Round(index=0, step=4, fragments=(0,), seed=0)
    payload, after = SPARSE.encode(delta, SPARSE.init(delta), now)
    residual, state = SPARSE.take_residual(after)
    assert residual is not None and state == SPARSE.init(delta)
    assert torch.equal(SPARSE.decode(payload, delta)["w"].flatten() + residual, delta["w"].flatten())
    assert int((residual == delta["w"].flatten()).sum()) == 130 - 8 - 8 - 1  # chunks of 64, 64 and 2


def test_islands_go_on_from_the_global_weights_and_what_they_did_not_send() -> None:
    """The equations of the docstring, with the islands' ends taken from a twin that does not sync."""
    sync, twin = (
        toy.build(3, outer=SGD(lr=1.0), codec=SPARSE, schedule=s) for s in (EveryH(), LateMerge(steps=99, merges=1))
    )
    before = merged(sync).clone()
    for step in range(4):
        toy.train_step(sync, step)
        toy.train_step(twin, step)
    fragment = sync.state.fragments[0]
    for island in range(3):
        delta = before - local(twin, island)
        own = Round(index=0, step=4, fragments=(0,), seed=0)
        views = fragment.views(delta)
        sent = SPARSE.decode(SPARSE.encode(views, {}, own)[0], views)
        expected = merged(sync) - (delta - toy.flat(list(sent.values())))
        torch.testing.assert_close(local(sync, island), expected, atol=1e-6, rtol=1e-5)
    assert not torch.equal(local(sync, 0), local(sync, 1))


@pytest.mark.parametrize("schedule", [EveryH(), OneStepDelay(), Streaming(fragments=2, delay=1, by="size")])
@pytest.mark.parametrize("steps", [8, 10])
def test_the_last_merge_sends_everything(schedule: Schedule, steps: int) -> None:
    """Also if the last step ended in a sync: then only what was held back is left."""
    sync = toy.build(3, codec=SPARSE, schedule=schedule)
    for step in range(steps):
        toy.train_step(sync, step)
    assert not torch.equal(local(sync, 0), merged(sync))
    sync.finish()
    for island in range(3):
        assert torch.equal(local(sync, island), merged(sync))


def test_a_codec_that_loses_nothing_is_itself() -> None:
    """The reduction of the docstring; the last merge is the only difference, and without a step it changes nothing."""
    whole = TopK(chunk=64, k=64, bits=16)
    ends = []
    for codec in (whole, LocalResidual(codec=whole)):
        sync = toy.build(2, codec=codec)
        for step in range(8):
            toy.train_step(sync, step)
        ends.append(merged(sync).clone())
    torch.testing.assert_close(ends[0], ends[1], atol=5e-3, rtol=5e-2)  # bf16 values leave a residual of 2^-9
    assert not torch.equal(ends[0], torch.zeros_like(ends[0]))


def test_averaging_loses_no_island_s_progress() -> None:
    """With outer SGD of rate 1 the mean of the islands' weights is that of uncompressed averaging."""
    sparse = toy.build(2, outer=SGD(lr=1.0), codec=SPARSE, schedule=EveryH())
    for step in range(4):
        toy.train_step(sparse, step)
    plain = toy.build(2, outer=SGD(lr=1.0))
    for step in range(4):
        toy.train_step(plain, step)
    weights = [r.tokens / sum(r.tokens for r in sparse.replicas) for r in sparse.replicas]
    mean = sum(w * local(sparse, i) for i, w in enumerate(weights))
    assert isinstance(mean, Tensor)
    torch.testing.assert_close(mean, merged(plain), atol=1e-6, rtol=1e-5)


def test_after_a_last_merge_that_failed_rounds_are_sparse_again() -> None:
    class Failing(Simulated):
        left: int | None = None
        """Gathers that still work."""

        def gather(self, rows: Sequence[Tensor]) -> Tensor:
            if self.left is not None:
                if self.left == 0:
                    raise SyncError("the gather failed")
                self.left -= 1
            return super().gather(rows)

    transport = Failing(2)
    sync = toy.build(2, codec=SPARSE, transport=transport)
    for step in range(5):
        toy.train_step(sync, step)
    transport.left = 2  # finish asks who is done and who has trained; then the merge's roll call fails
    with pytest.raises(SyncError, match="the gather failed"):
        sync.finish()
    assert sync.pending == (0,)
    transport.left = None
    assert not sync.state.round_of(0).last
    sync.finish()
    assert torch.equal(local(sync, 0), merged(sync)) and torch.equal(local(sync, 1), merged(sync))


def test_a_checkpoint_needs_no_buffer() -> None:
    sync = toy.build(2, codec=SPARSE)
    for step in range(5):
        toy.train_step(sync, step)
    tensors, _ = island_part(sync.state, 0)
    assert not [name for name in tensors if name.startswith("codec.")]


@pytest.mark.parametrize("codec", [ErrorFeedback(codec=Int4()), LocalResidual(codec=Fp8())])
def test_two_memories_are_refused(codec: ErrorFeedback | LocalResidual) -> None:
    with pytest.raises(ConfigError, match=r"codec\.codec = .*leave ErrorFeedback out"):
        LocalResidual(codec=codec).check()
