"""Properties of what a sync is built from: partitions, flat vectors with views, the ordered sum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowcomm.state.anchor import Anchor
from lowcomm.state.coverage import check_partition
from lowcomm.state.fragment import Fragment
from lowcomm.transport import base
from lowcomm.transport.base import may_take_place, ordered_sum
from lowcomm.types import CoverageError


@given(st.integers(1, 12).flatmap(lambda n: st.lists(st.integers(0, 4), min_size=n, max_size=n)), st.randoms())
def test_every_real_partition_passes_and_every_damaged_one_is_refused(places: list[int], random: object) -> None:
    names = [f"p{i}" for i in range(len(places))]
    parts = [[n for n, place in zip(names, places, strict=True) if place == k] for k in sorted(set(places))]
    check_partition(names, parts)
    pick = random.randrange(len(names))  # type: ignore[attr-defined]
    victim = names[pick]
    without = [[n for n in part if n != victim] for part in parts]
    with pytest.raises(CoverageError, match=f"is {victim}|is empty"):
        check_partition(names, [p for p in without if p])
    with pytest.raises(CoverageError, match=f"parameter {victim} is in fragments"):
        check_partition(names, [*parts, [victim]])
    with pytest.raises(CoverageError, match="no trainable parameter"):
        check_partition([n for n in names if n != victim], parts)
    with pytest.raises(CoverageError, match="is empty"):
        check_partition(names, [*parts, []])


@given(
    st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=6),
    st.integers(1, 7),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_views_cover_the_flat_vector_once(shapes: list[tuple[int, ...]], islands: int, dtype: torch.dtype) -> None:
    """Scalars and empty tensors included; the rest up to a multiple of the islands is padding and stays 0."""
    tensors = {f"t{i}": torch.full(shape, i + 1.0, dtype=dtype) for i, shape in enumerate(shapes)}
    fragment = Fragment(tensors, islands, torch.device("cpu"))
    assert fragment.size % islands == 0
    assert fragment.numel == sum(t.numel() for t in tensors.values()) <= fragment.size < fragment.numel + islands
    anchor = Anchor(fragment, 0, (0,))
    anchor.read(list(tensors.values()))
    expected = torch.cat([t.reshape(-1).float() for t in tensors.values()])
    assert torch.equal(anchor.weights[: fragment.numel], expected)
    touched = torch.zeros(fragment.size)
    for name, view in fragment.views(touched).items():
        assert view.shape == tensors[name].shape
        view.add_(1)
    assert torch.equal(touched, (torch.arange(fragment.size) < fragment.numel).float())
    moved = [t - 0.5 for t in tensors.values()]
    delta, norm = anchor.delta_of(moved, 0)
    assert torch.equal(delta, 0.5 * touched)
    assert norm == pytest.approx(0.5 * fragment.numel**0.5)


@given(st.integers(1, 400), st.integers(1, 6), st.integers(0, 2**32 - 1), st.booleans(), st.integers(1, 128))
def test_ordered_sum_is_rounded_in_island_order(size: int, islands: int, seed: int, equal: bool, block: int) -> None:
    """Against the same operations in numpy, and float64 within the error of a sum; block and cut change no bit."""
    rng = np.random.default_rng(seed)
    vectors = [(rng.standard_normal(size) * 10.0 ** rng.integers(-3, 4)).astype(np.float32) for _ in range(islands)]
    weights = [1 / islands] * islands if equal else [float(w) for w in rng.random(islands) + 0.01]
    if islands > 1 and not equal:
        weights[0] = 0.0
    used = [(v, w) for v, w in zip(vectors, weights, strict=True) if w != 0]
    if len({w for _, w in used}) == 1:
        expected = used[0][0].copy()
        for v, _ in used[1:]:
            expected += v
        expected *= np.float32(used[0][1])
    else:
        expected = used[0][0] * np.float32(used[0][1])
        for v, w in used[1:]:
            expected += v * np.float32(w)
    out = torch.empty(size)
    given_tensors = [torch.from_numpy(v) for v in vectors]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "BLOCK", block)
        ordered_sum(given_tensors, weights, out, torch.empty(block))
    assert np.array_equal(out.numpy(), expected)
    exact = sum(v.astype(np.float64) * w for v, w in used)
    bound = 2 * (islands + 1) * 2.0**-24 * sum(np.abs(v.astype(np.float64)) * w for v, w in used)
    assert np.all(np.abs(expected - exact) <= bound + 1e-30)


def test_a_sum_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="every weight is 0"):
        ordered_sum([torch.ones(3)], [0.0], torch.empty(3), torch.empty(8))


def test_an_island_of_weight_0_is_skipped_even_if_it_holds_nan() -> None:
    out = torch.empty(4)
    ordered_sum([torch.full((4,), float("nan")), torch.ones(4)], [0.0, 1.0], out, torch.empty(8))
    assert torch.equal(out, torch.ones(4))


@pytest.mark.parametrize(
    "weights", [[0.5, 0.5], [0.25] * 4, [0.0, 0.5, 0.5], [0.2, 0.8], [0.0, 0.3, 0.7], [1.0], [0.0, 1.0]]
)
def test_a_sum_may_take_the_place_of_a_vector_that_is_not_read_after_it(weights: list[float]) -> None:
    vectors = [torch.randn(100, generator=torch.Generator().manual_seed(k)) for k in range(len(weights))]
    wanted = torch.empty(100)
    ordered_sum(vectors, weights, wanted, torch.empty(8192))
    allowed = []
    for index in range(len(weights)):
        copies = [v.clone() for v in vectors]
        ordered_sum(copies, weights, copies[index], torch.empty(8192))
        right = torch.equal(copies[index], wanted)
        assert right or not may_take_place(index, weights)
        allowed += [index] * may_take_place(index, weights)
    assert allowed
