"""Parts by flag: every method can be written as a short spec, and nothing else gets in."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowcomm.codec import Codec, ErrorFeedback, Fp32, Int4, Packed, TopK, Zstd
from lowcomm.config import RunConfig, SyncConfig
from lowcomm.config_file import to_dict
from lowcomm.data import DataConfig, HFTokenizer, JsonLines, Messages, TextFiles
from lowcomm.flags.assign import assign_parts, help_of_parts, part_fields
from lowcomm.flags.parse import parse_flags
from lowcomm.flags.parts import build, known
from lowcomm.flags.spec import parse
from lowcomm.outer import Nesterov
from lowcomm.types import ConfigError
from tests import methods

PLACES = {
    "sync.outer": methods.OUTERS,
    "sync.schedule": methods.SCHEDULES,
    "sync.codec": methods.CODECS,
    "sync.aggregator": (*methods.AGGREGATORS, *methods.LORA_RULES),
    "sync.privacy": methods.MECHANISMS,
    "sync.sampling": methods.SAMPLINGS,
    "sync.objective": methods.OBJECTIVES,
    "sync.moments": methods.MOMENTS,
    "sync.exchange": methods.EXCHANGES,
    "inner.optimizer": methods.INNERS,
    "data.partition": methods.PARTITIONS,
}


def at(config: object, path: str) -> object:
    for name in path.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize("path", PLACES)
def test_every_method_is_a_spec(path: str) -> None:
    """What Python shows of a method is its spec, and gives it back."""
    for method in PLACES[path]:
        config, left = assign_parts(RunConfig(), [f"--{path}", repr(method)])
        assert at(config, path) == method
        assert left == []


def test_the_configuration_is_that_of_a_recipe_to_the_byte() -> None:
    recipe = RunConfig(
        data=DataConfig(source=TextFiles(glob="*.txt"), tokenizer=HFTokenizer(path=Path("here"))),
        sync=SyncConfig(codec=ErrorFeedback(codec=TopK(k=32) | Zstd(), beta=0.9), outer=Nesterov(lr=1, momentum=0.5)),
    )
    flags = ["--data.source", "TextFiles(glob='*.txt')", "--data.tokenizer=HFTokenizer(path='here')"]
    flags += ["--sync.codec", "ErrorFeedback(codec=TopK(k=32) | Zstd(), beta=0.95)", "--sync.codec.beta", "0.9"]
    flags += ["--sync.outer", "nesterov(lr=1)", "--sync.outer.momentum", "0.5"]
    assert json.dumps(to_dict(parse_flags(RunConfig(), flags, "train"))) == json.dumps(to_dict(recipe))


def test_parts_of_parts_and_none() -> None:
    start = RunConfig(sync=SyncConfig(codec=ErrorFeedback(codec=Int4())))
    config, _ = assign_parts(start, ["--sync.codec.codec", "Fp32", "--sync.secure", "secure_sum"])
    assert config.sync.codec == ErrorFeedback(codec=Fp32()) and config.sync.secure is not None
    config, _ = assign_parts(config, ["--sync.secure", "None", "--data.source", 'JsonLines(glob="a", chat=Messages)'])
    assert config.sync.secure is None
    assert isinstance(config.data.source, JsonLines) and config.data.source.chat == Messages()


def test_other_flags_are_left_alone() -> None:
    flags = ["--steps", "3", "--sync.every=4", "--sync.codec.block", "8", "--sync", "x", "codec", "--nothing.at.all"]
    assert assign_parts(RunConfig(), flags) == (RunConfig(), flags)


@pytest.mark.parametrize(
    ("flag", "spec", "words"),
    [
        ("sync.codec", "Int5()", ["sync.codec = 'Int5'", "Int4, Int8", "Fix: "]),
        ("sync.codec", "Topk(k=2, chunks=3)", ["sync.codec.chunks", "chunk=4096", "Fix: write chunk"]),
        ("sync.codec", "TopK(k='many')", ["sync.codec.k = 'many'", "an int is wanted"]),
        ("sync.codec", "Zstd()", ["put it behind a codec"]),
        ("sync.codec", "Int4() | TopK()", ["Fix: TopK() | Int8() | Zstd()"]),
        ("sync.codec", "None", ["sync.codec = None", "a Codec is wanted"]),
        ("sync.codec", "Nesterov()", ["one of BF16"]),
        ("sync.codec", "Int4", None),
        ("sync.codec", "Int4(256)", ["named fields only"]),
        ("sync.codec", "Int4(block=", ["NAME(FIELD=VALUE, ...)"]),
        ("sync.codec", "", ["NAME(FIELD=VALUE, ...)"]),
        ("sync.codec", "Int4(**{})", ["none of a name"]),
        ("sync.codec", "__import__('os').system('true')", ["none of a name"]),
        ("sync.codec", "(lambda: 1)()", ["none of a name"]),
        ("sync.codec", "[Int4() for _ in (1,)]", ["none of a name"]),
        ("sync.codec", "- " * 20_000 + "1", ["NAME(FIELD=VALUE, ...)"]),
        ("data.source", "texts", ["Fix: write TextFiles"]),
        ("data.source", "TextFiles", ["without glob", "glob (required)"]),
        ("data.tokenizer", "HFTokenizer(path=3)", ["data.tokenizer.path = 3"]),
    ],
)
def test_bad_specs_are_one_line(flag: str, spec: str, words: list[str] | None) -> None:
    if words is None:
        assign_parts(RunConfig(), [f"--{flag}", spec])
        return
    with pytest.raises(ConfigError) as refused:
        assign_parts(RunConfig(), [f"--{flag}", spec])
    message = str(refused.value)
    assert "\n" not in message and all(word in message for word in words), message
    assert message.startswith(flag) and "Fix: " in message


@pytest.mark.parametrize("flags", [["--sync.codec"], ["--sync.codec", "--steps", "3"]])
def test_a_part_without_a_value(flags: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"--sync\.codec wants a part: one of BF16"):
        assign_parts(RunConfig(), flags)


@given(text=st.text(alphabet="Int4TopK()=|,'\"[]{}-01.: x", max_size=30))
def test_any_text_is_a_spec_or_a_config_error(text: str) -> None:
    try:
        assert isinstance(build(parse(text, "sync.codec"), Codec, "sync.codec"), Codec)
    except ConfigError as error:
        assert "\n" not in str(error)


def test_only_classes_of_lowcomm_are_known() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Theirs(Fp32):
        pass

    assert "Fp32" in known(Codec) and Theirs.__name__ not in known(Codec)
    with pytest.raises(ConfigError, match="Theirs"):
        assign_parts(RunConfig(), ["--sync.codec", "Theirs()"])


def test_help_lists_every_part_of_every_field() -> None:
    shown = help_of_parts(RunConfig())
    for path, examples in PLACES.items():
        assert f"--{path} PART" in shown
        assert all(type(method).__name__ in shown for method in examples)
    for name in ("TextFiles", "JsonLines", "HFTokenizer", "TrainedBPE", "LoRA", "TinyBase", "SecureSum"):
        assert name in shown
    assert max(map(len, shown.splitlines())) <= 100
    inside = [path for path, _, _ in part_fields(RunConfig(sync=SyncConfig(codec=Packed(first=Fp32(), stage=Zstd()))))]
    assert "sync.codec.first" in inside and "sync.codec.stage" in inside
