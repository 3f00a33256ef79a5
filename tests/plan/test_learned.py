"""What the planner learns: a known error is found, nothing is made worse, ranges hold, runs are read as they are."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from lowcomm.codec import DctTopK, ErrorFeedback, Int4
from lowcomm.config import RunConfig, SyncConfig
from lowcomm.config_file import to_dict
from lowcomm.plan import codecs as coded
from lowcomm.plan.choose import choose, grid
from lowcomm.plan.learned import FEWEST, Learned, Observation, learn, logit, sigmoid
from lowcomm.plan.runtime import Job, Link, Settings, predict
from lowcomm.planner.runs import observations, settings_of
from lowcomm.schedule import LateMerge, Streaming
from lowcomm.types import ConfigError

JOB = Job(parameters=30_000_000, islands=2, step_s=0.2, steps=1000)
LINK = Link(rate_bytes_per_s=12.5e6, rtt_s=0.05)


def observed(count: int, error: float = 0.0, noise: float = 0.0) -> list[Observation]:
    """Runs whose utilisation is off by `error` in logits, more so for fp32."""
    draw, found = random.Random(0), []
    for i in range(count):
        codec = (coded.FP32, coded.INT4)[i % 2]
        settings = Settings(every=(10, 20, 40, 80, 160)[i % 5], codec=codec)
        off = error * (2.0 if codec is coded.FP32 else 1.0) + draw.gauss(0, noise)
        used = sigmoid(logit(predict(JOB, LINK, settings).utilisation) + off)
        found.append(Observation(job=JOB, link=LINK, settings=settings, utilisation=used))
    return found


@pytest.fixture(scope="module")
def learnt() -> Learned:
    """From fourteen runs that were slower than the closed form says."""
    return learn(observed(14, error=-0.6, noise=0.05))


def test_an_error_that_depends_on_the_codec_is_learnt(learnt: Learned) -> None:
    found = learnt
    assert found.kind == "boosting"
    assert found.error_after < 0.5 * found.error_before
    for codec, off in ((coded.FP32, -1.2), (coded.INT4, -0.6)):
        settings = Settings(every=20, codec=codec)
        wanted = sigmoid(logit(predict(JOB, LINK, settings).utilisation) + off)
        assert found.of(JOB, LINK, settings).utilisation == pytest.approx(wanted, rel=0.1)


def test_a_model_that_is_right_is_left_alone() -> None:
    found = learn(observed(FEWEST))
    assert found.error_before == found.error_after == pytest.approx(0.0, abs=1e-9)
    settings = Settings(every=20, codec=coded.INT4)
    assert found.of(JOB, LINK, settings).utilisation == pytest.approx(
        predict(JOB, LINK, settings).utilisation, rel=1e-6
    )


def test_no_correction_is_chosen_that_was_worse_on_the_runs_left_out() -> None:
    found = learn(observed(8, noise=0.5))
    assert found.error_after <= found.error_before


def test_the_range_holds_the_middle_and_many_new_runs(learnt: Learned) -> None:
    found, new = learnt, observed(40, error=-0.6, noise=0.05)[14:]
    seen = [(found.of(o.job, o.link, o.settings), o.utilisation) for o in new]
    assert all(c.low <= c.utilisation <= c.high for c, _ in seen)
    assert sum(c.low <= used <= c.high for c, used in seen) >= 0.4 * len(seen)


def test_far_from_the_runs_the_closed_form_stays_and_the_range_is_wider(learnt: Learned) -> None:
    found = learnt
    settings = Settings(every=20, codec=coded.INT4)
    slow = Link(rate_bytes_per_s=1e4, rtt_s=0.05)
    assert found.of(JOB, slow, settings).utilisation == pytest.approx(
        predict(JOB, slow, settings).utilisation, rel=1e-6
    )


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(ConfigError, match=rf"--runs = '{FEWEST - 1} usable runs' .* Fix: "):
        learn(observed(FEWEST - 1))


def test_learnt_choices_come_from_the_same_grid_and_are_ranked_by_what_was_learnt(learnt: Learned) -> None:
    found = learnt
    codecs = (coded.FP32, coded.INT4)
    plain = choose(JOB, LINK, utilisation=0.9, codecs=codecs)
    ranked = choose(JOB, LINK, utilisation=0.9, codecs=codecs, adjust=found.adjust(JOB, LINK))
    legal = list(grid(JOB, LINK, codecs, None, None))
    assert ranked.settings == plain.settings
    assert all(option.prediction.settings in legal for option in ranked.alternatives)
    assert ranked.reaching < plain.reaching  # runs were slower than the closed form says
    p = ranked.best.prediction
    assert p.utilisation == pytest.approx(p.settings.every * JOB.step_s / p.round_s)
    assert p.wall_s == pytest.approx(JOB.steps * JOB.step_s / p.utilisation)


def stored(directory: Path, sync: SyncConfig, **changes: Any) -> Path:
    """A run directory with three rounds of ten steps of 0.1 s, 0.5 s blocked each."""
    directory.mkdir(parents=True)
    config = to_dict(RunConfig(sync=sync))
    summary = {"status": "done", "islands": 2, "parameters_trainable": 1000, "steps": 41, **changes}
    lines = [
        {"event": "sync", "island": 0, "step": 10 * (i + 1), "time_s": 1.5 * (i + 1), "blocked_s": 0.5}
        for i in range(4)
    ]
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (directory / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    (directory / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return directory


def test_runs_are_read_with_their_own_step_time(tmp_path: Path) -> None:
    stored(tmp_path / "good", SyncConfig(every=10, codec=ErrorFeedback(codec=Int4())))
    stored(tmp_path / "failed", SyncConfig(every=10), status="failed")
    stored(tmp_path / "other", SyncConfig(every=10, codec=DctTopK()))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "summary.json").write_text("{", encoding="utf-8")
    found, skipped = observations(tmp_path, LINK)
    (one,) = found
    assert one.settings == Settings(every=10, codec=coded.INT4)
    assert one.utilisation == pytest.approx(1 - 1.5 / 4.5)
    assert one.job.step_s == pytest.approx(0.1)
    text = "\n".join(skipped)
    assert len(skipped) == 3 and "it is failed" in text and "DctTopK" in text and "JSONDecodeError" in text


def test_settings_of_schedules() -> None:
    streaming = to_dict(SyncConfig(every=12, schedule=Streaming(fragments=3, delay=2)))
    assert settings_of(streaming) == Settings(every=12, codec=coded.FP32, fragments=3, delay=2)
    late = to_dict(SyncConfig(schedule=LateMerge(steps=14, merges=2)))
    assert settings_of(late) == "the planner does not know its schedule, LateMerge"


def test_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--runs = .* is not allowed: a directory with run directories"):
        observations(tmp_path / "none", LINK)


def test_logits_are_finite_at_the_edges() -> None:
    assert all(math.isfinite(logit(x)) for x in (0.0, 1.0, 2.0, -1.0))
    assert sigmoid(logit(0.3)) == pytest.approx(0.3)
