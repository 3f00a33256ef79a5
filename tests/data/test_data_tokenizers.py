"""Tokenizers: same ids as the saved form, cached exactly, and clear errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowcomm.data import Bytes, HFTokenizer, TrainedBPE
from lowcomm.data.bytes_tokenizer import END_OF_TEXT, byte_characters
from lowcomm.data.tokenizer import Tokenizer
from lowcomm.types import ConfigError

TEXTS = [f"def f{i}(x):\n    return x + {i}  # naïve ∑ 🎉\n".encode() for i in range(60)]
UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def load(spec: TrainedBPE | Bytes | HFTokenizer, cache_dir: Path) -> Tokenizer:
    return spec.load(lambda: iter(TEXTS), cache_dir)


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    (ids,) = tokenizer.encode([text.encode()])
    return ids.tolist()


@pytest.fixture(scope="module")
def saved_bytes(tmp_path_factory: pytest.TempPathFactory):
    """The byte tokenizer beside its saved form, with a Llama config in the directory as in an export."""
    from transformers import AutoTokenizer, LlamaConfig

    directory = tmp_path_factory.mktemp("bytes")
    tokenizer = load(Bytes(), directory)
    LlamaConfig(vocab_size=tokenizer.vocab_size).save_pretrained(directory)
    tokenizer.save(directory)
    return tokenizer, AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Path]:
    cache_dir = tmp_path_factory.mktemp("bpe")
    return load(TrainedBPE(vocab_size=300), cache_dir), cache_dir


@settings(max_examples=200, deadline=None)
@given(UNICODE)
def test_saved_byte_tokenizer_gives_the_same_ids_and_text(saved_bytes, text: str):
    tokenizer, saved = saved_bytes
    ids = ids_of(tokenizer, text)
    assert ids == [*text.encode(), END_OF_TEXT]
    assert saved(text)["input_ids"] == ids[:-1]
    assert saved.decode(ids[:-1]) == text


def test_byte_tokenizer_special_ids(saved_bytes):
    tokenizer, saved = saved_bytes
    assert (saved.bos_token_id, saved.eos_token_id, saved.pad_token_id) == (256, 256, 256)
    assert tokenizer.vocab_size == 260
    assert tokenizer.token_bytes().tolist() == [1] * 256 + [0] * 4


def test_byte_characters_are_those_of_the_library():
    from tokenizers import pre_tokenizers

    assert sorted(byte_characters()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert [byte_characters()[b] for b in b"A~ \n"] == ["A", "~", "Ġ", "Ċ"]


@settings(max_examples=100, deadline=None)
@given(UNICODE | st.sampled_from(["<|endoftext|>", "a <|endoftext|> b"]))
def test_token_bytes_add_up_to_the_text(trained, text: str):
    tokenizer, _ = trained
    ids = ids_of(tokenizer, text)
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())
    assert tokenizer.token_bytes()[ids[-1]] == 0
    assert ids[-1] not in ids[:-1], "text must not be able to end a document"


def test_bpe_is_deterministic_and_comes_from_the_cache(trained, tmp_path: Path, monkeypatch):
    tokenizer, cache_dir = trained
    (first,) = (cache_dir / "bpe").glob("*.json")
    again = load(TrainedBPE(vocab_size=300), tmp_path)
    (second,) = (tmp_path / "bpe").glob("*.json")
    assert first.name == second.name and first.read_bytes() == second.read_bytes()
    assert again.key == tokenizer.key and tokenizer.vocab_size == 300

    monkeypatch.setattr(TrainedBPE, "_train", lambda *_: pytest.fail("trained again in spite of the cache"))
    assert load(TrainedBPE(vocab_size=300), cache_dir).key == tokenizer.key


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: d[:7], lambda d: b"x" + d[1:], lambda d: b""])
def test_corrupt_tokenizer_cache_is_rebuilt(tmp_path: Path, damage):
    key = load(TrainedBPE(vocab_size=270), tmp_path).key
    (path,) = (tmp_path / "bpe").glob("*.json")
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert load(TrainedBPE(vocab_size=270), tmp_path).key == key
    assert path.read_bytes() == whole
    assert [p.name for p in path.parent.iterdir()] == [path.name], "temporary files are left"


def test_unwritable_cache_is_no_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert load(TrainedBPE(vocab_size=270), tmp_path / "file" / "below").vocab_size == 270


def test_bpe_cache_key_has_text_and_settings(tmp_path: Path):
    spec = TrainedBPE(vocab_size=270)
    load(spec, tmp_path)
    load(TrainedBPE(vocab_size=271), tmp_path)
    spec.load(lambda: iter(TEXTS[1:]), tmp_path)
    assert len(list((tmp_path / "bpe").iterdir())) == 3


def test_train_bytes_limits_what_is_read(tmp_path: Path):
    def texts():
        yield from TEXTS[:3]
        pytest.fail("read past the limit")

    limit = sum(map(len, TEXTS[:3]))
    assert TrainedBPE(vocab_size=260, train_bytes=limit).load(texts, tmp_path).vocab_size == 260


def test_hf_tokenizer_equals_the_saved_one(trained, tmp_path: Path):
    tokenizer, _ = trained
    tokenizer.save(tmp_path / "a")
    loaded = load(HFTokenizer(path=tmp_path / "a"), tmp_path)
    text = "naïve <|endoftext|> 🎉\n"
    assert ids_of(loaded, text) == ids_of(tokenizer, text)
    np.testing.assert_array_equal(loaded.token_bytes()[:270], tokenizer.token_bytes()[:270])
    loaded.save(tmp_path / "b")
    assert ids_of(load(HFTokenizer(path=tmp_path / "b"), tmp_path), text) == ids_of(loaded, text)


def test_wordpiece_and_byte_fallback_sizes(tmp_path: Path):
    from tokenizers import Tokenizer as Backend
    from tokenizers import models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"[E]": 0, "▁a": 1, "##é": 2, "<0x41>": 3, "b": 4}
    backend = Backend(models.WordLevel(vocabulary, unk_token="b"))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[E]", pad_token="[E]").save_pretrained(tmp_path)
    loaded = load(HFTokenizer(path=tmp_path), tmp_path)
    assert loaded.token_bytes().tolist() == [0, 2, 2, 1, 1]


def test_tokenizer_without_pad_or_end_token(tmp_path: Path):
    from tokenizers import Tokenizer as Backend
    from tokenizers import models
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.WordLevel({"[E]": 0, "b": 1}, unk_token="b"))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[E]").save_pretrained(tmp_path / "nopad")
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path / "noend")
    with pytest.raises(ConfigError, match="pad_with_end_of_text"):
        load(HFTokenizer(path=tmp_path / "nopad"), tmp_path)
    with pytest.raises(ConfigError, match="end-of-text"):
        load(HFTokenizer(path=tmp_path / "noend"), tmp_path)
    fixed = load(HFTokenizer(path=tmp_path / "nopad", pad_with_end_of_text=True), tmp_path)
    fixed.save(tmp_path / "fixed")
    assert load(HFTokenizer(path=tmp_path / "fixed"), tmp_path).vocab_size == 2


def test_broken_tokenizer_directories(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"data\.tokenizer\.path"):
        HFTokenizer(path=tmp_path / "missing").check()
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match="save_pretrained") as info:
        load(HFTokenizer(path=tmp_path), tmp_path)
    assert "\n" not in str(info.value)


def test_import_is_light():
    heavy = "{'transformers', 'datasets', 'tokenizers', 'pyarrow', 'plotly', 'triton'}"
    code = f"import sys, lowcomm.data; print(sorted({heavy} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"
