"""Processes that die inside a masked exchange, one or two of them: the others' sum, shares and errors."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("cryptography")

from lowcomm.exchange.agreement import gathers
from lowcomm.secure import SecureSum
from lowcomm.secure.party import Party
from lowcomm.sync import SyncReport
from lowcomm.transport import Collective
from lowcomm.types import SyncError
from tests.secure.test_secure import build, one_round, plain_sum
from tests.support import runs, toy

Deaths = Mapping[int, tuple[int, Sequence[int]]]
"""By island that dies: the number of the message, and whom it still reaches."""

ROLL, HEARD = 1, 2
KEYS = HEARD + gathers(4)
SEALED, MASKED, SUMS, CONFIRM = range(KEYS + 1, KEYS + 5)
SHARES = CONFIRM + gathers(4)
VERIFY = SHARES + 1
GONE = "its process is gone"


class Doomed(Collective):
    """Kills its process in its exchange number `last` of those that survive a death, done with `told` only."""

    last, asked, done = 0, list[int](), 0

    def _swap_living(
        self, sends: Sequence[torch.Tensor], receives: Sequence[torch.Tensor]
    ) -> list[list[torch.Tensor | None]]:
        self.done += 1
        if self.done == self.last:
            works = [torch.distributed.irecv(receives[k], group_src=k) for k in self.asked]  # or their sends fail
            works += [torch.distributed.isend(sends[k], group_dst=k) for k in self.asked]
            for work in works:
                assert work is not None
                work.wait()
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._swap_living(sends, receives)


def doomed_main(out: str, deaths: Deaths, threshold: float) -> int:
    """Two rounds, or as many as there are before an error."""
    transport = Doomed.open(torch.device("cpu"), 20.0)
    assert isinstance(transport, Doomed)
    torch.set_num_threads(1)
    sync = build(transport, SecureSum(threshold=threshold))
    (me,) = transport.local
    if me in deaths:
        last, asked = deaths[me]
        transport.last, transport.asked = transport.done + last, list(asked)
    reports: list[SyncReport] = []
    sync.listeners.append(reports.append)
    dealt: list[Party] = []
    weights, error = list[list[float]](), ""
    with pytest.MonkeyPatch.context() as patch:
        start = Party.__init__
        patch.setattr(Party, "__init__", lambda self, *args: (dealt.append(self), start(self, *args))[1])
        try:
            for _ in range(2):
                weights.append(one_round(sync).tolist())
        except SyncError as failure:
            error = str(failure)
    told_of = [list(p._told or ()) for p in dealt]  # pyright: ignore[reportPrivateUsage]
    now = toy.flat(list(sync.weights().values())).tolist()
    seen = {"weights": weights, "now": now, "dropped": [r.dropped for r in reports], "told": told_of, "error": error}
    Path(out, f"{me}.json").write_text(json.dumps(seen), encoding="utf-8")
    transport.close()
    return 0


def survivors(tmp_path: Path, islands: int, deaths: Deaths, threshold: float = 0.67) -> list[dict[str, Any]]:
    """What those that do not die saw."""
    log = tmp_path / "log"
    arguments = (str(tmp_path), deaths, threshold)
    started = [runs.start(doomed_main, arguments, log, e) for e in runs.islands_environment(islands)]
    codes = [runs.wait(child, log) for child in started]
    expected = [-signal.SIGKILL if k in deaths else 0 for k in range(islands)]
    assert codes == expected, log.read_text(encoding="utf-8")
    left = [k for k in range(islands) if k not in deaths]
    return [json.loads((tmp_path / f"{k}.json").read_text(encoding="utf-8")) for k in left]


@pytest.mark.parametrize(
    ("last", "asked"),
    [
        *((ROLL, (0,)), (HEARD, ()), (KEYS, (0,)), (SEALED, (3,)), (MASKED, ()), (MASKED, (0,)), (SUMS, ())),
        *((SUMS, (0,)), (CONFIRM, (0,)), (CONFIRM + 1, (3,)), (SHARES, (3,)), (VERIFY, (0,))),
    ],
)
def test_a_process_that_is_killed_in_the_exchange_is_recovered(tmp_path: Path, last: int, asked: tuple[int]) -> None:
    """Whenever it dies and whoever still heard it, the others commit one sum, and the next one without it."""
    counted = last >= CONFIRM  # its vector and its part of the sum were everywhere
    left = [0, 1, 2, 3] if counted else [0, 1, 3]
    seen = survivors(tmp_path, 4, {2: (last, asked)})
    assert_one_sum(seen, left, [0, 1, 3], 4, exact=last != ROLL, restarts=int(last in (HEARD, KEYS, SEALED)))


def assert_one_sum(
    seen: Sequence[dict[str, Any]], left: Sequence[int], after: Sequence[int], islands: int, exact: bool, restarts: int
) -> None:
    """All saw the sum of `left` in the first round, of `after` in the second, and gave shares for these only."""
    assert [found["error"] for found in seen] == [""] * len(seen)
    assert all(found["weights"] == seen[0]["weights"] for found in seen)
    got, sum_of_left = torch.tensor(seen[0]["weights"][0]), plain_sum(left, SecureSum(), islands)
    if exact:
        assert torch.equal(got, sum_of_left)
    else:  # weighted among fewer from the start
        torch.testing.assert_close(got, sum_of_left, rtol=1e-6, atol=1e-7)
    for found in seen:
        gone = [{str(k): GONE for k in range(islands) if k not in counted} for counted in (left, after)]
        assert found["dropped"] == gone
        assert found["told"] == [[]] * restarts + [list(left), list(after)], "new keys if a party's had not reached all"


FIVE, THREE = [0, 1, 2, 3, 4], [0, 1, 3]
AGAIN = SHARES - KEYS
"""Messages from one beginning of a sum to the next."""
REPAIR = 2 + gathers(5)
"""Messages of a sum without one island: its parts, that of the one that is gone once more, and what was agreed."""


@pytest.mark.parametrize(
    ("deaths", "left", "exact", "restarts"),
    [
        pytest.param({2: (ROLL, THREE), 4: (HEARD, [0])}, THREE, False, 1, id="only one heard who missed the roll"),
        pytest.param({2: (KEYS, [0]), 4: (KEYS, [3])}, THREE, True, 1, id="both with keys"),
        pytest.param({2: (KEYS, [0]), 4: (AGAIN + MASKED, [0])}, THREE, True, 1, id="one in the sum begun again"),
        pytest.param({2: (KEYS, [0]), 4: (AGAIN + KEYS, [3])}, THREE, True, 2, id="begun again twice"),
        pytest.param({2: (SEALED, THREE), 4: (CONFIRM, [0])}, THREE, True, 2, id="only one heard that shares miss"),
        pytest.param({2: (MASKED, [0]), 4: (SUMS, [3])}, THREE, True, 0, id="a vector, then a part of the sum"),
        pytest.param({2: (SUMS, THREE), 4: (CONFIRM, [0])}, THREE, True, 0, id="only one heard that a sum is missing"),
        pytest.param({2: (SUMS, THREE), 4: (CONFIRM, [])}, FIVE, True, 0, id="nobody heard that a sum is missing"),
        pytest.param({2: (SHARES, [0]), 4: (SHARES, [3])}, FIVE, True, 0, id="both with shares"),
    ],
)
def test_two_that_are_killed_in_one_exchange_are_recovered(
    tmp_path: Path, deaths: Deaths, left: list[int], exact: bool, restarts: int
) -> None:
    """Whatever one that dies told of the other, and whom, those that are left agree."""
    seen = survivors(tmp_path, 5, deaths, threshold=0.6)
    assert_one_sum(seen, left, THREE, 5, exact, restarts)


def untouched() -> list[float]:
    """Weights before the first round."""
    return toy.flat(list(toy.Net().parameters())).tolist()


@pytest.mark.parametrize("last", [SUMS, CONFIRM])
def test_two_deaths_below_the_threshold_end_in_one_error(tmp_path: Path, last: int) -> None:
    """4 of 5 are needed: nothing is committed and no share is given."""
    for found in survivors(tmp_path, 5, {2: (MASKED, [0]), 4: (last, [3])}):
        assert "3 of 5 parties are left, sync.secure needs 4 (island 2: its process is gone; island 4" in found["error"]
        assert found["weights"] == [] and found["told"] == [[]]
        assert found["now"] == untouched()


def test_shares_that_reach_one_island_only_end_in_errors_not_in_another_sum(tmp_path: Path) -> None:
    """The last death is after the sum was fixed: one that had its shares has the right sum, and stops as all do."""
    first, *others = survivors(tmp_path, 5, {2: (MASKED, [0]), 4: (REPAIR + SHARES, [0])})
    assert "its weights could not be compared with the other islands'" in first["error"]
    assert first["now"] == plain_sum([0, 1, 3, 4], SecureSum(), 5).tolist()
    for found in others:
        assert "can't be taken off: 3 shares came, 4 are needed. Nothing was committed" in found["error"]
        assert found["now"] == untouched()
    assert all(found["told"] == [[0, 1, 3, 4]] for found in (first, *others))
