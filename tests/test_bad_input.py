"""Bad configuration: one line with field, value, range and fix; exit code 2; nothing started or written."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist
from safetensors.torch import load_file, save_file

import lowcomm.island
import lowcomm.run.launch
from lowcomm.cli import main
from lowcomm.config import RunConfig
from lowcomm.config_file import to_dict
from lowcomm.island import IslandConfig
from lowcomm.types import ConfigError
from tests.support import runs


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(autouse=True)
def _nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process group or an agent would fail the test by itself."""

    def fail(*_: object) -> int:
        raise AssertionError("something was started")

    monkeypatch.setattr(lowcomm.run.launch, "launch", fail)
    monkeypatch.setattr(dist, "init_process_group", fail)


Refuse = Callable[..., str]


@pytest.fixture
def refuse(tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """`lowcomm train RECIPE --transport collective ARGUMENTS` must be refused; returns the line on stderr."""
    recipe = runs.write_recipe(tmp_path, corpus)

    def refuse(*arguments: str, command: str = "train", function: str = "local") -> str:
        run_dir = tmp_path / "new"
        placed = [] if "--run-dir" in arguments else ["--run-dir", str(run_dir)]
        code = main([command, f"{recipe}:{function}", "--transport", "collective", *placed, *arguments])
        captured = capsys.readouterr()
        assert code == 2, captured
        assert captured.err.startswith("lowcomm: error: ") and captured.err.count("\n") == 1, captured.err
        assert captured.out == ""
        assert not run_dir.exists() and not dist.is_initialized()
        return captured.err

    return refuse


OUT_OF_RANGE = [
    ("name", "a/b", "a file name without slashes"),
    ("name", "", "a file name without slashes"),
    ("name", "..", "a file name without slashes"),
    ("islands", "0", "1 or more"),
    ("islands", "-1", "1 or more"),
    ("steps", "0", "1 or more"),
    ("seed", "-1", "0 <= seed < 2^63"),
    ("seed", str(2**63), "0 <= seed < 2^63"),
    ("threads", "0", "1 or more"),
    ("log_every", "0", "1 or more"),
    ("island.size", "0", "1 or more"),
    ("island.size", "-1", "1 or more"),
    ("island.size", "3", "a divisor of data.batch_size (2)"),
    ("island.microbatches", "0", "1 or more, one for each stage"),
    ("data.seq_len", "0", "1 or more"),
    ("data.batch_size", "0", "1 or more"),
    ("data.validation_sequences", "0", "1 or more"),
    ("data.validation_fraction", "0", "above 0 and at most 0.5"),
    ("data.validation_fraction", "0.6", "above 0 and at most 0.5"),
    ("data.validation_fraction", "nan", "above 0 and at most 0.5"),
    ("data.chat_date", "today", "a date as year-month-day"),
    ("data.cache_dir", __file__, "a directory"),
    ("model.width", "30", "a multiple of 8, for nano"),
    ("model.directory", "/nonexistent", "a directory with config.json"),
    ("inner.warmup_fraction", "-0.1", "0 to 1"),
    ("inner.warmup_fraction", "nan", "0 to 1"),
    ("inner.min_lr_fraction", "1.1", "0 to 1"),
    ("inner.decay_fraction", "0", "above 0, to 1"),
    ("inner.decay_fraction", "1.1", "above 0, to 1"),
    ("inner.decay_fraction", "nan", "above 0, to 1"),
    ("inner.clip_norm", "0", "above 0, or None for off"),
    ("inner.clip_norm", "-1", "above 0, or None for off"),
    ("inner.clip_norm", "nan", "above 0, or None for off"),
    ("inner.accumulation", "0", "1 or more"),
    ("inner.optimizer.lr", "0", "a finite number above 0"),
    ("inner.optimizer.lr", "inf", "a finite number above 0"),
    ("inner.optimizer.beta1", "1", "0 <= value < 1"),
    ("inner.optimizer.beta2", "-0.1", "0 <= value < 1"),
    ("inner.optimizer.weight_decay", "-1", "a finite number, 0 or more"),
    ("inner.optimizer.weight_decay", "inf", "a finite number, 0 or more"),
    ("sync.every", "0", "1 or more"),
    ("sync.every", "13", "1 <= every <= steps (12)"),
    ("sync.outer.lr", "0", "a finite number above 0"),
    ("sync.outer.lr", "nan", "a finite number above 0"),
    ("sync.outer.momentum", "1", "0 <= value < 1"),
    ("sync.quorum", "0", "0 < quorum <= 1"),
    ("sync.quorum", "1.5", "0 < quorum <= 1"),
    ("sync.quorum", "nan", "0 < quorum <= 1"),
    ("sync.norm_bound", "1", "a finite number above 1"),
    ("sync.norm_bound", "nan", "a finite number above 1"),
    ("sync.timeout_s", "0", "a finite number above 0"),
    ("sync.timeout_s", "inf", "a finite number above 0"),
    ("sync.late_tolerance_s", "-1", "a finite number from 0"),
    ("sync.streams", "0", "1 to 64"),
    ("sync.streams", "65", "1 to 64"),
    ("eval.every", "0", "1 or more, or None for off"),
    ("eval.influence", "0", "1 or more, or None for off"),
    ("checkpoint.every_rounds", "0", "1 or more, or None for off"),
    ("checkpoint.every_s", "0", "a finite number above 0, or None for off"),
    ("checkpoint.every_s", "inf", "a finite number above 0, or None for off"),
    ("checkpoint.keep", "0", "1 or more"),
    ("checkpoint.stop_at_step", "0", "1 or more, or None for off"),
    ("checkpoint.stop_at_step", "12", "1 to 11, below steps"),
]


@pytest.mark.parametrize(("field", "value", "legal"), OUT_OF_RANGE)
def test_field_out_of_range(refuse: Refuse, field: str, value: str, legal: str) -> None:
    line = refuse("--" + field.replace("_", "-"), value)
    assert field in line and legal in line
    assert (value if value not in ("", "0", "1") else "") in line
    assert "Fix: " in line or "fix: " in line


def test_every_field_is_tried() -> None:
    """Each number, name and path of a run is in the list above; the rest is checked by tyro or by its own test."""
    import dataclasses

    found: set[str] = set()

    def walk(value: object, prefix: str) -> None:
        assert dataclasses.is_dataclass(value)
        for field in dataclasses.fields(value):
            inner = getattr(value, field.name)
            if dataclasses.is_dataclass(inner):
                walk(inner, f"{prefix}{field.name}.")
            elif "bool" not in str(field.type) and "Literal" not in str(field.type):
                found.add(prefix + field.name)

    walk(RunConfig(), "")
    own_tests = {"run_dir", "data.source.max_bytes", "data.partition", "sync.privacy", "sync.aggregator.most_tokens"}
    own_tests |= {
        "sync.sampling",
        "sync.local_steps",
        "sync.objective",
        "sync.secure",
        "sync.exchange",
        "sync.moments",
    }  # tests/test_clients, test_secure, test_gossip, test_buffered, hooks/test_moments
    own_tests |= {"data.chat_template", "inner.lr_schedule"}  # Literals by another name
    own_tests |= {
        "sync.buffers",
        "sync.attack",
        "sync.proxy",
        "sync.heartbeat_s",
        "store",
    }  # model directories, attacks, regroup, stores
    assert found - own_tests == {field for field, _, _ in OUT_OF_RANGE}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--stepz", "5"], ["Unrecognized", "--stepz"]),
        (["--steps", "many"], ["--steps", "many", "int"]),
        (["--steps"], ["--steps", "Missing"]),
        (["--device", "gpu"], ["--device", "gpu", "cuda"]),
        (["--inner.lr-schedule", "step"], ["--inner.lr-schedule", "step", "inverse_sqrt"]),
        (["--model.preset", "7b"], ["--model.preset", "7b", "nano"]),
        (["--data.sharding", "random"], ["--data.sharding", "random", "by_file"]),
        (["5"], ["Unrecognized", "5"]),
        (["--inner.optimizer.lr", "fast"], ["--inner.optimizer.lr", "fast", "float"]),
    ],
)
def test_flags_that_do_not_parse(refuse: Refuse, arguments: list[str], words: list[str]) -> None:
    line = refuse(*arguments)
    assert all(word in line for word in words), line


def test_schedule_out_of_range(refuse: Refuse) -> None:
    line = refuse("--sync.schedule.warmup-steps", "14", function="post_local")
    assert "sync.schedule.warmup_steps = 14 is not allowed: 0 <= warmup_steps <= steps (13)" in line
    assert "-1" in refuse("--sync.schedule.warmup-steps", "-1", function="post_local")


def test_source_out_of_range(refuse: Refuse, tmp_path: Path) -> None:
    recipe = tmp_path / "stdlib.py"
    recipe.write_text("from lowcomm.config import RunConfig\n\ndef run():\n    return RunConfig()\n", encoding="utf-8")
    capsys_line = refuse_recipe(refuse, recipe, "--data.source.max-bytes", "0")
    assert "data.source.max_bytes is 0" in capsys_line


def refuse_recipe(refuse: Refuse, recipe: Path, *arguments: str, function: str = "run") -> str:
    """Refuse another recipe file: it takes the place of the small one."""
    shutil.copy(recipe, recipe.parent / "small_recipe.py")
    return refuse(*arguments, function=function)


def test_gpu_that_is_not_there(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "device = 'cuda' is not allowed: torch sees no GPU here. Fix: pass --device cpu" in refuse(
        "--device", "cuda"
    )


def test_islands_and_world(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "3"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "3")):
        monkeypatch.setenv(name, value)
    assert "islands = 2 is not allowed: torchrun started 3 processes" in refuse("--islands", "2")
    line = refuse("--transport", "simulated")
    assert "transport = 'simulated' runs in one process, but torchrun started 3" in line and "Fix: " in line


def test_island_sizes_and_kinds(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    """A world that islands don't divide names the sizes that do; kinds that can't do what is asked say so."""
    simulated = refuse("--island.size", "2", "--transport", "simulated")
    assert "islands of several ranks are processes. Fix: --transport collective" in simulated
    zero = ("--island.size", "2", "--island.kind", "zero2")
    assert "DeepSpeed keeps the gradients to itself. Fix: --island.kind fsdp" in refuse(*zero, function="ddp")
    for kind, inner, fix in (("fsdp", "Soap", "ddp"), ("tensor", "Soap", "ddp"), ("zero1", "Muon", "fsdp")):
        with pytest.raises(ConfigError, match=rf"'{kind}' is not allowed .* = {inner}, .*Fix: --island.kind {fix}"):
            IslandConfig(kind=kind, size=2).check_optimizer(getattr(lowcomm.island, inner)())  # type: ignore[arg-type]
    assert "island.offload = True is not allowed: False without ZeRO" in refuse("--island.offload")
    pipeline = ("--island.size", "2", "--island.kind", "pipeline", "--island.microbatches", "3")
    assert "island.microbatches = 3 is not allowed: a divisor of data.batch_size (2)" in refuse(*pipeline)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "6"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "6")):
        monkeypatch.setenv(name, value)
    assert "6 ranks divide into islands of [1, 2, 3, 6] ranks" in refuse("--island.size", "4")
    assert "islands = 2 is not allowed: torchrun started 6 processes, 2 for each island" in refuse("--island.size", "2")
    assert "islands = 4 is not allowed: torchrun started 6 processes, which divide into" in refuse("--islands", "4")


def test_the_default_island_is_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several nodes: a node's ranks; one node: each rank; --islands: what it leaves."""
    from lowcomm.membership import World, count_islands

    for name, value in (("RANK", "0"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    two_nodes = World(rank=0, size=8, local_rank=0, local_size=4)
    one_node = World(rank=0, size=8, local_rank=0, local_size=8)
    assert count_islands(RunConfig(), two_nodes) == (2, 4)
    assert count_islands(RunConfig(), one_node) == (8, 1)
    assert count_islands(RunConfig(islands=4), one_node) == (4, 2)
    assert count_islands(RunConfig(island=IslandConfig(size=8)), two_nodes) == (1, 8)


def test_every_rank_says_it(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    recipe = runs.write_recipe(tmp_path, corpus)
    arguments = ["--transport", "collective", "--steps", "0", "--run-dir", str(tmp_path / "new")]
    assert main(["train", f"{recipe}:local", *arguments]) == 2
    assert "steps = 0 is not allowed" in capsys.readouterr().err  # torchrun may end rank 0 before it speaks


def test_missing_text(refuse: Refuse, tmp_path: Path) -> None:
    line = refuse("--data.source.glob", str(tmp_path / "nothing" / "*.txt"))
    assert "data.source.glob is " in line and "matches one or more files" in line and "fix: " in line


def test_sequence_longer_than_the_file(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("a short text\n" * 4, encoding="utf-8")
    line = refuse("--data.source.glob", str(tmp_path / "short.txt"), "--data.seq-len", "4096")
    assert "data.seq_len is 4096; legal: at most " in line and "fix: shorten the sequences" in line


def test_empty_shard(refuse: Refuse) -> None:
    """More islands than files, each file on one island; and more islands than sequences."""
    line = refuse("--data.sharding", "by_file", "--islands", "9")
    assert "islands" in line and "9" in line and "fix: " in line
    line = refuse("--islands", "5000")
    assert "island" in line and "fix: " in line


def test_unknown_model_type(refuse: Refuse, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"model_type": "no-such-model"}), encoding="utf-8")
    line = refuse("--model.directory", str(directory))
    assert "model.directory = " in line and "does not load" in line and "no-such-model" in line and "Fix: " in line
    (directory / "config.json").write_text("{", encoding="utf-8")
    assert "does not load" in refuse("--model.directory", str(directory))
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    assert "does not load" in refuse("--model.directory", str(directory))  # no weights


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("model")
    shape = LlamaConfig(
        vocab_size=100,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(shape).save_pretrained(directory)
    return directory


def test_model_that_does_not_fit_the_text(refuse: Refuse, model: Path) -> None:
    line = refuse("--model.directory", str(model))
    assert "data.tokenizer = 260 is not allowed: at most the model's 100 tokens" in line


def test_corrupt_weights(refuse: Refuse, model: Path, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(model, directory)
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert "does not load as a transformers causal LM" in refuse("--model.directory", str(directory))
    tensors = load_file(model / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    assert "lacks the weights of model.norm.weight (1 missing). Fix: " in refuse("--model.directory", str(directory))


def test_model_shorter_than_the_sequences(refuse: Refuse, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        vocab_size=260,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    LlamaForCausalLM(shape).save_pretrained(tmp_path / "model")
    capsys.readouterr()  # its progress bar
    line = refuse("--model.directory", str(tmp_path / "model"))
    assert "data.seq_len = 32 is not allowed: at most the model's 16" in line


def test_tokenizer_without_pad_token(refuse: Refuse, tmp_path: Path, corpus: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE({"<end>": 0, **{chr(c): c - 32 for c in range(33, 127)}}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>").save_pretrained(tmp_path / "tokenizer")
    recipe = tmp_path / "hf.py"
    recipe.write_text(
        "import dataclasses\nfrom pathlib import Path\n"
        "from lowcomm.data import HFTokenizer\nfrom tests.support.runs import small\n"
        f"def run():\n    base = small(Path({str(corpus)!r}), None)\n"
        f"    tokenizer = HFTokenizer(path=Path({str(tmp_path / 'tokenizer')!r}))\n"
        "    return dataclasses.replace(base, data=dataclasses.replace(base.data, tokenizer=tokenizer))\n",
        encoding="utf-8",
    )
    line = refuse_recipe(refuse, recipe)
    assert "a tokenizer with a pad token" in line and "pad_with_end_of_text" in line
    assert "data.tokenizer.path is " in refuse("--data.tokenizer.path", str(tmp_path / "nowhere"), function="run")


def test_directory_with_a_run(refuse: Refuse, tmp_path: Path) -> None:
    used = tmp_path / "used"
    used.mkdir()
    line = refuse("--run-dir", str(used), "--resume")
    assert "holds no run to resume. Fix: leave out --resume" in line
    (used / "config.json").write_text("{}", encoding="utf-8")
    line = refuse("--run-dir", str(used))
    assert f"run_dir = {str(used)!r} already holds a run. Fix: pass --resume auto, which starts it over" in line
    assert [p.name for p in used.iterdir()] == ["config.json"]
    line = refuse("--run-dir", str(used / "config.json"))
    assert "is a file. Fix: pass --run-dir DIR" in line
    assert "can't be written" in refuse("--run-dir", str(used / "config.json" / "below"))


def test_another_configuration(refuse: Refuse, tmp_path: Path, corpus: Path) -> None:
    used = tmp_path / "used"
    (used / "checkpoints/000001/island-00000").mkdir(parents=True)
    stored = to_dict(runs.small(corpus, used, steps=99))
    (used / "config.json").write_text(json.dumps(stored), encoding="utf-8")
    line = refuse("--run-dir", str(used), "--resume")
    assert "steps = 12 (stored: 99) differs from the run that is to be resumed. Fix: " in line


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_two_runs_in_one_directory(refuse: Refuse, tmp_path: Path, resume: list[str]) -> None:
    used = tmp_path / "used"
    used.mkdir()
    with (used / ".lock").open("w", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        line = refuse("--run-dir", str(used), *resume)
    assert f"run_dir = {str(used)!r} is in use by another run. Fix: pass another --run-dir" in line


def test_a_run_that_came_and_went_meanwhile(tmp_path: Path) -> None:
    """The lock is free again, but the directory is not."""
    from lowcomm.run.run_dir import check_directory, lock
    from lowcomm.types import ConfigError

    check_directory(tmp_path, resume=False)
    lock(tmp_path, 0, resume=False).close()
    with lock(tmp_path, 0, resume=False), lock(tmp_path, 2, resume=False):  # two nodes with one file system
        with pytest.raises(ConfigError, match="is in use"):
            lock(tmp_path, 0, resume=False)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match="already holds a run"):
        lock(tmp_path, 0, resume=False)
    (tmp_path / "config.json").unlink()
    lock(tmp_path, 0, resume=False).close()  # the refused ones let go of it


RECIPES = [
    ("def run():\n    return 5\n", "returned int. Fix: return a RunConfig"),
    ("def run():\n    return None\n", "returned NoneType. Fix: return a RunConfig"),
    ("def run(steps):\n    return None\n", "failed: TypeError"),
    ("def run():\n    return 1 / 0\n", "failed: ZeroDivisionError: division by zero. Fix: correct it"),
    ("def other():\n    return 5\n", "has no function 'run'. Fix: use one of other"),
    ("run = 5\n", "has no function 'run'. Fix: use one of none"),
    ("def run(:\n", "does not load: SyntaxError"),
    ("import no_such_module\n", "does not load: ModuleNotFoundError: No module named 'no_such_module'"),
    ("x = y\n", "does not load: NameError"),
    ("raise ValueError('two\\nlines')\n", "does not load: ValueError: two lines"),
    ("\0", "does not load"),
    (
        "from lowcomm.config import RunConfig\ndef run():\n    return RunConfig(stepz=1)\n",
        "failed: TypeError: RunConfig.__init__() got an unexpected keyword argument 'stepz'",
    ),
]


@pytest.mark.parametrize(("source", "words"), RECIPES)
def test_bad_recipes(refuse: Refuse, tmp_path: Path, source: str, words: str) -> None:
    recipe = tmp_path / "broken.py"
    recipe.write_text(source, encoding="utf-8")
    assert words in refuse_recipe(refuse, recipe)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("nowhere.py:run", "recipe file 'nowhere.py' is neither here nor packaged. Fix: see `lowcomm recipes`"),
        ("/nowhere/diloco.py:smoke", "is neither here nor packaged"),
        ("elsewhere/diloco.py:smoke", "is neither here nor packaged"),
        ("pyproject.toml:run", "is not a Python file"),
        ("recipes:run", "is neither here nor packaged"),
        ("", "is neither here nor packaged"),
        ("diloco.py:nothing", "has no function 'nothing'. Fix: use one of "),
        ("diloco.py:RunConfig", "has no function 'RunConfig'"),
        ("diloco.py:", "has no function ''"),
    ],
)
@pytest.mark.parametrize("command", ["train", "simulate"])
def test_recipe_that_is_not_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str, reference: str, words: str
) -> None:
    monkeypatch.chdir(runs.ROOT)
    assert main([command, reference]) == 2
    error = capsys.readouterr().err
    assert error.startswith("lowcomm: error: ") and error.count("\n") == 1 and words in error


def test_library_that_is_missing(refuse: Refuse, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    recipe = tmp_path / "hf.py"
    recipe.write_text(
        "import dataclasses\nfrom lowcomm.config import RunConfig\nfrom lowcomm.data import DataConfig, HFDataset\n"
        "def run():\n    return RunConfig(data=DataConfig(source=HFDataset(name='some-text')))\n",
        encoding="utf-8",
    )
    assert "pip install 'lowcomm[data]'" in refuse_recipe(refuse, recipe)
