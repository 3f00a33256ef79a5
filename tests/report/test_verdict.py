"""What a federation was worth to each client, and what an epsilon and an attack mean, in words."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowcomm.privacy.membership_inference import auc, auc_error
from lowcomm.report.html import write_report
from lowcomm.report.privacy import epsilon_in_words, spent_in_words
from lowcomm.report.verdict import client_lines, verdict

COLUMNS = {
    "before": [2.5, 2.5, 2.5],
    "after": [2.0, 2.0, 2.0],
    "own": [2.0, 2.0, 2.0],
    "local": [2.2, 1.9, 2.001],
    "centralised": [1.8, 1.8, 1.8],
}


def test_the_verdict_is_against_alone_where_that_was_measured() -> None:
    said = [verdict(COLUMNS, k) for k in range(3)]
    assert said[0] == "better off in the federation than alone (by 0.2000, 9.1%)"
    assert said[1] == "would have done better alone (by 0.1000, 5.3%)"
    assert said[2] == "as good alone as in the federation"
    unmeasured = {k: v for k, v in COLUMNS.items() if k in ("before", "after", "own")}
    assert verdict(unmeasured, 0).endswith("than before (by 0.5000, 20.0%); alone was not measured (--eval.baselines)")
    assert verdict({**unmeasured, "before": [1.0, 1.0, 1.0]}, 0) == "did better untuned (by 1.0000, 100.0%)"


def test_lines_stand_under_their_heads() -> None:
    lines = list(client_lines(["north", "a hospital", "c"], COLUMNS))
    assert lines[0].split()[:5] == ["client", "before", "federated", "alone", "pooled"]
    column = lines[0].index("alone") + len("alone")
    assert [line[:column].split()[-1] for line in lines[1:4]] == ["2.2000", "1.9000", "2.0010"]
    assert lines[-1].split()[0] == "mean"
    personal = {**COLUMNS, "own": [1.7, 2.0, 2.0]}
    assert "federated, its own" in next(iter(client_lines(["a", "b", "c"], personal)))
    assert verdict(personal, 0).startswith("better off in the federation than alone (by 0.5000")


def test_many_clients_are_cut_on_the_terminal() -> None:
    lines = list(client_lines([str(k) for k in range(50)], {"before": [1.0] * 50, "after": [0.5] * 50}))
    assert len(lines) < 30 and "30 more clients" in lines[-2]


@given(st.lists(st.tuples(*[st.floats(0, 1e6)] * 3), min_size=1, max_size=4))
def test_any_losses_have_words(rows: list[tuple[float, float, float]]) -> None:
    columns = {name: [row[i] for row in rows] for i, name in enumerate(["before", "after", "local"])}
    assert all(verdict(columns, k) for k in range(len(rows)))


@pytest.mark.parametrize(
    ("epsilon", "words"),
    [
        (
            4.56,
            ["e^epsilon = 95.6 times: weak; epsilon below 1", "a given sequence or conversation"],
        ),
        (0.5, ["1.65 times: strong"]),
        (2.4, ["11 times: moderate"]),
        (40.0, ["more than 1,000,000 times: next to nothing"]),
        (1e9, ["next to nothing"]),
        (None, ["no privacy"]),
        (math.inf, ["no privacy"]),
    ],
)
def test_epsilon_in_words(epsilon: float | None, words: list[str]) -> None:
    assert all(w in epsilon_in_words(epsilon) for w in words)


def test_what_was_spent_names_delta_and_whom_it_protects() -> None:
    said = spent_in_words({"epsilon_total": 3.0, "delta": 1e-5, "level": "client"})
    assert said.startswith("privacy: epsilon 3 at delta 1e-05: an observer's odds that a given client took part")


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_the_error_of_an_auc_is_that_of_repeated_draws(shift: float) -> None:
    torch.manual_seed(0)
    areas = torch.tensor([auc(torch.randn(40) + shift, torch.randn(30)) for _ in range(400)])
    mean = float(areas.mean())
    assert auc_error(mean, 40, 30) == pytest.approx(float(areas.std()), rel=0.2)
    assert auc_error(1.0, 5, 5) == 0.0


def test_the_report_has_every_client_by_name_with_its_verdict(tmp_path: Path) -> None:
    evil = "<b>north</b>"
    table = {
        "names": [evil, "south", "east"],
        "clients": COLUMNS,
        "membership": {"loss": {"auc": 0.6, "auc_error": 0.1}},
    }
    for name, value in {
        "config.json": {"name": "run"},
        "summary.json": {"name": "run", "status": "done", "privacy": {"epsilon_total": 4.56, "level": "example"}},
        "clients.json": table,
    }.items():
        (tmp_path / name).write_text(json.dumps(value), encoding="utf-8")
    (tmp_path / "metrics.jsonl").write_text("", encoding="utf-8")
    page = write_report([tmp_path]).read_text(encoding="utf-8")
    assert evil not in page and "&lt;b&gt;north&lt;/b&gt;" in page
    assert "would have done better alone (by 0.1000, 5.3%)" in page and '<th class="n">Pooled</th>' in page
    assert "e^epsilon = 95.6 times: weak" in page and "0.600 +- 0.196" in page
    (tmp_path / "clients.json").write_text(json.dumps({**table, "names": 3}), encoding="utf-8")
    assert "<td>0</td>" in write_report([tmp_path]).read_text(encoding="utf-8")
