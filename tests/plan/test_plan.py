"""The planner: its bytes are those that are counted, its limits are those of a link, its answers are runnable."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lowcomm import recipe
from lowcomm.cli import main
from lowcomm.codec import Codec, ErrorFeedback, Fp32, Int4, Int8, TopK, TwoBit
from lowcomm.config_check import check
from lowcomm.outer import SGD, Pier
from lowcomm.plan import codecs as coded
from lowcomm.plan.choose import PERIODS, choose, grid
from lowcomm.plan.penalty import loss_penalty, outer_lr, outer_momentum, outside
from lowcomm.plan.runtime import Job, Link, Settings, exchange_s, predict
from lowcomm.plan.traffic import traffic
from lowcomm.plan.what_if import PAPER_GBIT, SIZES, needed
from lowcomm.planner.inputs import doctor_link, model_of, preset_parameters
from lowcomm.schedule import Streaming
from lowcomm.sync import LocalSGD
from lowcomm.transport import Simulated

ROOT = Path(__file__).resolve().parents[2]
PAIRS: tuple[tuple[coded.Coded, Codec], ...] = (
    (coded.FP32, Fp32()),
    (coded.INT8, ErrorFeedback(codec=Int8())),
    (coded.INT4, ErrorFeedback(codec=Int4())),
    (coded.TWO_BIT, ErrorFeedback(codec=TwoBit())),
    (coded.TOP_K, ErrorFeedback(codec=TopK(chunk=4096, k=64, bits=2), beta=0.95)),
)
CALL = ["plan", "--parameters", "1e9", "--islands", "4", "--step-s", "1.5", "--rate-mbit", "100", "--rtt-ms", "50"]
JOB = Job(parameters=1_000_000_000, islands=4, step_s=1.5, steps=40_000)
LINK = Link(rate_bytes_per_s=12.5e6, rtt_s=0.05)


def islands_of(sizes: list[int], islands: int, codec: Codec, fragments: int) -> LocalSGD:
    """Islands with one parameter of each size."""
    models = [
        nn.ParameterDict({f"p{i}": nn.Parameter(torch.zeros(n)) for i, n in enumerate(sizes)}) for _ in range(islands)
    ]
    inners = [torch.optim.SGD(m.parameters(), lr=1.0) for m in models]
    schedule = Streaming(fragments=fragments, by="size")
    return LocalSGD(
        models, inners, every=fragments, codec=codec, outer=SGD(lr=1.0), schedule=schedule, transport=Simulated(islands)
    )


def one_round(sync: LocalSGD, every: int) -> None:
    for _ in range(every):
        for k, replica in enumerate(sync.replicas):
            for p in replica.params.values():
                p.grad = torch.full_like(p, 0.01 * (k + 1))
                p.grad[0] = 1.0  # top-k has something to choose
            replica.inner.step()


@pytest.mark.parametrize("islands", [2, 3, 4])
@pytest.mark.parametrize(("planned", "codec"), PAIRS, ids=[c.name for c, _ in PAIRS])
def test_predicted_bytes_are_the_counted_ones(planned: coded.Coded, codec: Codec, islands: int) -> None:
    """Every island's own bytes, both ways, of one and of several fragments; one is longer than a segment."""
    for sizes, fragments in (([1537], 1), ([4097, 3], 1), ([300, 5000], 2), ([islands * (1 << 20) + 700], 1)):
        sync = islands_of(sizes, islands, codec, fragments)
        before = list(zip(sync.transport.sent_bytes, sync.transport.received_bytes, strict=True))
        one_round(sync, fragments)
        assert sync.round == fragments
        parts = [f.numel for f in sync.state.fragments]
        for k in range(islands):
            expected = [traffic(planned, numel, islands, k) for numel in parts]
            assert sync.transport.sent_bytes[k] - before[k][0] == sum(t.sent_bytes for t in expected)
            assert sync.transport.received_bytes[k] - before[k][1] == sum(t.received_bytes for t in expected)


@pytest.mark.parametrize(
    ("codec", "islands", "trips"),
    [
        (coded.FP32, 2, 3.5),  # roll call, contributions and results, digests
        (coded.INT4, 2, 4),
        (coded.INT4, 3, 10),
        (coded.INT4, 4, 14),
        (coded.TOP_K, 3, 8),
    ],
)
def test_round_trips(codec: coded.Coded, islands: int, trips: float) -> None:
    """Those of a sync that training waits for, its last check included; see results/planner_constants.json."""
    assert traffic(codec, 1000, islands).round_trips == trips


def test_recipe_expressions_are_the_codecs_that_were_planned() -> None:
    import lowcomm.codec as package

    for planned, codec in PAIRS:
        names = {name: getattr(package, name) for name in planned.imports}
        assert eval(planned.recipe, {"__builtins__": {}}, names) == codec
    assert [c for c, _ in PAIRS] == list(coded.CODECS)


def test_a_long_link_is_limited_by_the_window_and_streams_help() -> None:
    link = Link(rate_bytes_per_s=125e6, rtt_s=0.05, window_bytes=2.5e6, efficiency=1.0)
    assert link.bytes_per_s(1) == pytest.approx(50e6)
    assert link.bytes_per_s(4) == pytest.approx(125e6)
    assert replace(link, rtt_s=0.0).bytes_per_s(1) == pytest.approx(125e6)
    lossy = replace(link, loss=1e-4)
    assert lossy.bytes_per_s(1) == pytest.approx(1.22 * 1448 / (0.05 * 0.01))
    assert replace(link, loss=4e-4).bytes_per_s(1) == pytest.approx(lossy.bytes_per_s(1) / 2)
    best = choose(replace(JOB, islands=2), link).best.prediction.settings
    assert best.streams == 4  # the fewest that fill it


def test_utilisation_moves_the_right_way() -> None:
    """More rate, less latency, longer rounds, fewer bits, more delay: each keeps islands busier."""
    base = Settings(every=50, codec=coded.INT4, fragments=4, delay=2)
    middle = predict(JOB, LINK, base).utilisation
    assert 0 < middle < 1
    for better in (
        predict(JOB, replace(LINK, rate_bytes_per_s=25e6), base),
        predict(JOB, replace(LINK, rtt_s=0.0), base),
        predict(JOB, LINK, replace(base, every=100)),
        predict(JOB, LINK, replace(base, codec=coded.TWO_BIT)),
        predict(JOB, LINK, replace(base, delay=3)),
        predict(replace(JOB, step_s=3.0), LINK, base),
    ):
        assert better.utilisation > middle
    assert predict(JOB, replace(LINK, loss=0.01), base).utilisation < middle


def test_what_is_hidden_costs_only_the_local_part() -> None:
    settings = Settings(every=100, codec=coded.INT4, fragments=4, delay=20)
    job = replace(JOB, step_s=100.0)
    prediction = predict(job, LINK, settings)
    assert prediction.blocked_s == pytest.approx(job.local_s_per_parameter * job.parameters)
    assert prediction.wall_s == pytest.approx(job.steps * 100 / prediction.utilisation)
    assert prediction.bytes_per_day == pytest.approx(prediction.sent_bytes * 86400 / prediction.round_s)
    waits = predict(job, LINK, replace(settings, delay=0))
    assert waits.blocked_s == pytest.approx(prediction.blocked_s + 4 * waits.exchange_s)
    partly = predict(JOB, LINK, replace(settings, delay=2))  # two steps of 1.5 s are not enough
    assert partly.blocked_s == pytest.approx(waits.blocked_s - 4 * 2 * 1.5)


def test_the_exchange_is_latency_bytes_and_codec() -> None:
    """By hand: int4, two islands, 10 Mbit/s, nothing hidden; one megabyte of large packets needs no slow start."""
    job, link = Job(parameters=10**6, islands=2, step_s=0.1, steps=10), Link(rate_bytes_per_s=1.25e6, rtt_s=0.1)
    link = replace(link, packet_bytes=65_000, efficiency=1.0)
    found = traffic(coded.INT4, 10**6, 2)
    by_hand = 4 * 0.1 + (found.sent_bytes + 65_000) / 1.25e6 + coded.INT4.codec_s_per_parameter * 10**6
    assert exchange_s(job, link, Settings(every=10, codec=coded.INT4), 10**6) == pytest.approx(by_hand)


def test_slow_start_costs_round_trips_on_small_packets() -> None:
    """6.25 MB in the pipe from 14.5 kB: nine doublings, of which part of the time carries data."""
    job, settings = replace(JOB, islands=2), Settings(every=10, codec=coded.INT4)
    link = Link(rate_bytes_per_s=12.5e6, rtt_s=0.5, window_bytes=1e9)
    lost = exchange_s(job, link, settings, 10**8) - exchange_s(job, replace(link, packet_bytes=1e6), settings, 10**8)
    assert 2.5 < lost < 4.5


def test_penalty_is_the_published_table_at_its_points() -> None:
    fp32 = Settings(every=30, codec=coded.FP32)
    for parameters, row in (
        (35e6, (0.007, 0.020, 0.039)),
        (550e6, (0.002, 0.007, 0.017)),
        (2.4e9, (-0.001, 0.003, 0.011)),
    ):
        for islands, expected in zip((2, 4, 8), row, strict=True):
            job = Job(parameters=round(parameters), islands=islands, step_s=1.0, steps=100)
            assert loss_penalty(job, fp32) == pytest.approx(expected, abs=1e-4)
            assert outside(job, fp32) is None
    job = replace(JOB, islands=8)
    assert loss_penalty(job, replace(fp32, every=60)) - loss_penalty(job, fp32) == pytest.approx(0.0025)
    assert loss_penalty(job, replace(fp32, delay=10)) - loss_penalty(job, fp32) == pytest.approx(0.002)
    assert outer_lr(job, fp32) == pytest.approx(0.8)
    assert outer_lr(replace(job, islands=2), fp32) == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"parameters": 10**6}, "1M parameters"),
        ({"islands": 16}, "16 islands"),
        ({}, "0.25 % are added per doubling of H"),
    ],
)
def test_outside_the_fits_it_says_so(changed: dict[str, int], word: str) -> None:
    note = outside(replace(JOB, **changed), Settings(every=500, codec=coded.INT4))  # pyright: ignore[reportArgumentType]
    assert note is not None and word in note and "\n" not in note


def test_the_choice_is_the_least_loss_that_reaches_the_goal() -> None:
    choice = choose(JOB, LINK, utilisation=0.9)
    assert choice.reached and choice.best.prediction.utilisation >= 0.9
    for settings in grid(JOB, LINK, coded.USUAL, None, None):
        if predict(JOB, LINK, settings).utilisation >= 0.9:
            assert loss_penalty(JOB, settings) >= choice.best.penalty - 1e-4
    easy = choose(replace(JOB, step_s=60.0), replace(LINK, rate_bytes_per_s=1e13, rtt_s=0.0), utilisation=0.9).best
    assert easy.label == "DiLoCo fp32"  # nothing is compressed in vain
    assert easy.prediction.settings.every == 30
    hopeless = choose(JOB, replace(LINK, rate_bytes_per_s=1e3), utilisation=0.9)
    assert not hopeless.reached
    assert hopeless.best.prediction.utilisation == max(o.prediction.utilisation for o in hopeless.alternatives)
    budget = choose(JOB, LINK, budget_s=40_000 * 1.5 * 1.1)
    assert budget.best.prediction.wall_s <= 40_000 * 1.5 * 1.1


def test_every_option_is_a_legal_schedule() -> None:
    for settings, layers in itertools.product(grid(JOB, LINK, coded.CODECS, 6, None), (6,)):
        assert settings.fragments <= layers and settings.every in PERIODS
        if 0 < settings.delay < settings.every:
            Streaming(fragments=settings.fragments, delay=settings.delay).check(settings.every, JOB.steps)
    short = replace(JOB, steps=7)
    assert {s.every for s in grid(short, LINK, coded.USUAL, None, None)} == {7}


def test_what_if_follows_the_papers_table_within_2x() -> None:
    rows = [needed(size) for size in SIZES]
    for i, row in enumerate(rows):
        for method, values in PAPER_GBIT.items():
            assert 0.5 < row.gbit[method] / values[i] < 2, (method, values[i], row.gbit[method])
    for method, values in PAPER_GBIT.items():  # and its order over the sizes
        mine = [row.gbit[method] for row in rows]
        assert sorted(range(3), key=mine.__getitem__) == sorted(range(3), key=values.__getitem__)
    assert 1.4 < needed(3e9).gbit["streaming + overlap + FP4"] < 1.9


def test_presets_have_the_size_of_the_models() -> None:
    from lowcomm.model import ModelConfig, build_model

    for preset in ("nano", "tiny"):
        model = build_model(ModelConfig(preset=preset), vocab_size=260, max_tokens=64, seed=0, eos_id=256)  # type: ignore[arg-type]
        assert preset_parameters(preset) == sum(p.numel() for p in model.parameters())
    assert 0.9e9 < preset_parameters("1b") < 1.3e9


def test_a_config_directory(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=300, n_positions=32, n_embd=32, n_layer=3, n_head=2)
    config.save_pretrained(tmp_path)
    model = model_of(None, None, tmp_path)
    assert model.parameters == sum(p.numel() for p in GPT2LMHeadModel(config).parameters())
    assert model.layers == 3


def doctor_file(path: Path, **changed: object) -> Path:
    links = {
        "labels": ["a|x|y", "b|x|y"],
        "latency_ms": [[None, 25.0], [25.0, None]],
        "bandwidth_mb_per_s": [[None, 8.0], [10.0, None]],
        "payload_bytes": 4_000_000,
    }
    path.write_text(json.dumps({"links": {**links, **changed}}), encoding="utf-8")
    return path


def test_link_of_a_doctors_report(tmp_path: Path) -> None:
    """The slowest rate; the acknowledgement's round trip (50 ms) is taken out of 4 MB in 0.5 s."""
    link = doctor_link(doctor_file(tmp_path / "doctor.json"))
    assert link.rate_bytes_per_s == pytest.approx(4e6 / 0.45)
    assert link.rtt_s == pytest.approx(0.05)
    assert main([*CALL[:7], "--doctor", str(tmp_path / "doctor.json")]) == 0


BAD = [
    (["--rate-mbit", "0"], "--rate-mbit = 0.0"),
    (["--rate-mbit", "nan"], "--rate-mbit = nan"),
    (["--rate-mbit", "fast"], "--rate-mbit"),
    (["--step-s", "-1"], "--step-s = -1.0"),
    (["--rtt-ms", "-5"], "--rtt-ms = -5.0"),
    (["--loss", "1"], "--loss = 1.0"),
    (["--islands", "1"], "--islands = 1"),
    (["--utilisation", "0"], "--utilisation = 0.0"),
    (["--utilisation", "1"], "--utilisation = 1.0"),
    (["--utilisation", "95"], "--utilisation = 95.0"),
    (["--budget-days", "-2"], "--budget-days = -2.0"),
    (["--tokens", "0"], "--tokens = 0.0"),
    (["--tokens-per-step", "-8"], "--tokens-per-step = -8"),
    (["--every", "0"], "--every = 0"),
    (["--every", "100000"], "--every = 100000"),
    (["--codecs", "fp32,zip"], "--codecs = 'zip'"),
    (["--codecs", ""], "--codecs = ''"),
    (["--parameters", "12"], "--parameters = 12.0"),
    (["--preset", "nano"], "the model = '--parameters, --preset'"),
    (["--doctor", "none.json"], "the link = 100.0"),
    (["--recipe", "plan.txt"], "--recipe = 'plan.txt'"),
    (["--recipe", "nowhere/plan.py"], "--recipe = 'nowhere/plan.py'"),
    (["--html", "nowhere/plan.html"], "--html = 'nowhere/plan.html'"),
    (["--what-if", "big"], "--what-if = 'big'"),
    (["--what-if", "1B/0"], "--what-if = '0'"),
    (["--fly"], "--fly"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*CALL, *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    assert shown.err.startswith("lowcomm: error: ") and words in shown.err and "Fix: " in shown.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the model = None"),
        (["--parameters", "1e9"], "--step-s = None"),
        (["--parameters", "1e9", "--step-s", "1"], "the link = None"),
        (["--preset", "huge", "--step-s", "1", "--rate-mbit", "1"], "--preset = 'huge'"),
        (["--config", "nowhere", "--step-s", "1", "--rate-mbit", "1"], "--config = 'nowhere'"),
        (["--parameters", "1e9", "--step-s", "1", "--doctor", "nowhere.json"], "holds no measured links"),
    ],
)
def test_missing_input_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error and "Fix: " in error


@pytest.mark.parametrize(
    "changed", [{"bandwidth_mb_per_s": [[None, 0.0], [1.0, None]]}, {"payload_bytes": 0}, {"latency_ms": [[None]]}]
)
def test_a_broken_doctors_report_is_refused(
    changed: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = doctor_file(tmp_path / "doctor.json", **changed)
    assert main([*CALL[:7], "--doctor", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


WAYS = {
    "parameters": CALL[1:],
    "slow": ["--preset", "tiny", "--islands", "3", "--step-s", "0.05", "--rate-mbit", "1", "--tokens-per-step", "1024"],
    "easy": ["--preset", "150m", "--islands", "2", "--step-s", "1", "--rate-mbit", "1e6"],
    "sparse": [*CALL[1:], "--codecs", "topk"],
    "one-step delay": [*CALL[1:], "--codecs", "int8", "--every", "100"],
}


@pytest.mark.parametrize("way", WAYS)
def test_the_recipe_is_one_that_train_takes(way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.py"
    assert main(["plan", *WAYS[way], "--recipe", str(path)]) == 0
    shown = capsys.readouterr().out
    config = recipe.load(f"{path}:plan")
    assert config.islands is not None
    check(config, config.islands)
    assert f"a sync every {config.sync.every} inner steps (H)" in shown
    assert f" {config.sync.streams} TCP connection" in shown
    assert f" {path}:plan" in shown and " settings that reach a utilisation of " in shown
    compile(path.read_text(encoding="utf-8"), "mine.py", "exec")
    assert max(len(line) for line in path.read_text(encoding="utf-8").splitlines()) <= 160
    assert main(["plan", *WAYS[way], "--recipe", str(path)]) == 2  # never overwrites
    assert "a file that does not exist yet" in capsys.readouterr().err


def test_the_step_can_be_measured_and_the_recipe_starts_from_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.py"
    arguments = ["--measure", "diloco.py:smoke", "--islands", "3", "--rate-mbit", "5", "--rtt-ms", "20"]
    assert main(["plan", *arguments, "--recipe", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "116 k parameters" in shown and "a step of 512 tokens" in shown
    config = recipe.load(f"{path}:plan")
    check(config, 3)
    assert (config.islands, config.data.batch_size, config.model.preset) == (3, 8, "nano")


def test_the_page_is_whole_and_offline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.html"
    assert main([*CALL, "--html", str(path)]) == 0
    page = path.read_text(encoding="utf-8")
    figures = json.loads(page.split('id="figures">')[1].split("</script>")[0])
    assert set(figures) == {"utilisation", "penalty"}
    names = [trace["name"] for trace in figures["utilisation"]["data"]]
    assert "data-parallel (DDP)" in names and len(names) == 6
    for trace in figures["utilisation"]["data"]:
        assert trace["y"] == sorted(trace["y"]) and len(trace["x"]) == len(trace["y"]) == 41
    assert "src=" not in page.split("<script>")[0] and "default-src 'none'" in page
    assert str(path) in capsys.readouterr().out


def test_what_if_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--what-if", "1B/10B/100B"]) == 0
    shown = capsys.readouterr().out
    assert "222 (222)" in shown and "DiLoCo" in shown


def test_help_and_one_call_are_quick_and_load_no_models() -> None:
    """In a process of its own; what a machine that others use takes to import torch is allowed for."""
    code = (
        "import sys; from lowcomm.cli import main\n"
        f"assert main({CALL!r}) == 0\n"
        "print(sorted({'transformers', 'plotly', 'datasets', 'triton', 'peft'} & set(sys.modules)))\n"
        "main(['plan', '--help'])"
    )
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "[]" in done.stdout and "--what-if" in done.stdout and "predicted: utilisation" in done.stdout
    assert time.monotonic() - start < 30


def test_the_committed_validation_is_this_models() -> None:
    """Its predictions are those of today's code, its table is made from it, and the goals are met."""
    import statistics

    from benchmarks.planner import CELLS, expected
    from benchmarks.planner_table import planner_table

    path = ROOT / "benchmarks" / "results" / "planner.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    rows = result["rows"]
    assert len(rows) == len(CELLS) == 12
    for cell, row in zip(CELLS, rows, strict=True):
        assert (cell.method, cell.rate_mbit, cell.rtt_ms) == (row["method"], row["rate_mbit"], row["rtt_ms"])
        assert expected(cell, row["step_s"]).utilisation == pytest.approx(row["predicted"], rel=1e-9)
        assert row["error"] == pytest.approx(abs(row["predicted"] / row["measured"] - 1))
    assert statistics.median(row["error"] for row in rows) < 0.15 and max(row["error"] for row in rows) < 0.35
    assert path.with_suffix(".md").read_text(encoding="utf-8") == planner_table(result)


def test_the_committed_constants_are_this_models() -> None:
    """Round trips within half of one per exchange; seconds per parameter within a factor of two."""
    rows = json.loads((ROOT / "benchmarks" / "results" / "planner_constants.json").read_text(encoding="utf-8"))["rows"]
    by_name = {codec.name: codec for codec in coded.CODECS}
    for row in rows:
        if row["what"] == "round_trips":
            counted = traffic(by_name[row["codec"]], 1000, row["hosts"]).round_trips - (row["hosts"] - 1)
            assert counted == row["planned"] and abs(row["measured"] - counted) < 0.6 + 0.05 * counted, row
        elif row["what"] == "codec":
            planned = by_name[row["codec"]].codec_s_per_parameter
            assert planned == row["planned"] and 0.5 < planned / row["measured"] < 2, row


@pytest.mark.parametrize(
    ("rounds", "momentum"), [(20, 0.6), (39, 0.6), (40, 0.8), (59, 0.8), (239, 0.8), (240, 0.9), (5000, 0.9)]
)
def test_momentum_goes_with_rounds(rounds: int, momentum: float) -> None:
    job = replace(JOB, steps=30 * rounds)
    assert outer_momentum(job, Settings(every=30, codec=coded.INT4)) == momentum
    assert outer_momentum(job, Settings(every=30, codec=coded.TOP_K)) == 0  # SparseLoCo averages


def test_a_plan_of_few_rounds_warms_its_momentum_up(tmp_path: Path) -> None:
    tokens = 4 * 131_072 * 30 * 50
    path = tmp_path / "plan.py"
    fast = ["plan", "--parameters", "1e6", "--islands", "4", "--step-s", "1.5", "--rate-mbit", "1e6"]
    assert main([*fast, "--tokens", str(tokens), "--every", "30", "--codecs", "fp32", "--recipe", str(path)]) == 0
    assert recipe.load(f"{path}:plan").sync.outer == Pier(lr=0.6, momentum=0.8, warmup_rounds=25)
