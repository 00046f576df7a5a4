"""The token cache: what stands in it is what tokenizing gives, and whatever befalls a file costs time alone."""

import os
import time
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from datasets import SentencePairDataset
from engine import token_cache
from engine.batching import bucket_loader
from tokenizer import BertTokenizer

TEXTS = ["a cat", "the film is not [SEP] bad", "", "caf\u00e9 \ud800 guitar!"] + [f"fix {i}" for i in range(20)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return the cache's folder, in which any number of texts is kept."""
    monkeypatch.setattr(token_cache, "TOKEN_CACHE_TEXTS", 1)
    monkeypatch.setattr(token_cache, "default_cache_dir", lambda: tmp_path)
    monkeypatch.delenv("MINBERT_TOKEN_CACHE", raising=False)
    return tmp_path / "tokens"


@pytest.fixture
def tokenizer(tiny_bert):
    return BertTokenizer.from_pretrained(str(tiny_bert))


@pytest.fixture
def tokenized(monkeypatch):
    """Return the list of the texts that have been tokenized."""
    asked, encode = [], BertTokenizer.encode
    monkeypatch.setattr(BertTokenizer, "encode", lambda self, text, **options: (
        asked.append(text), encode(self, text, **options))[1])
    return asked


def rows(tokens):
    return [ids.tolist() for ids in np.split(tokens.ids, tokens.offsets[1:-1])]


def test_texts_are_tokenized_once_whole(folder, tokenizer, tokenized):
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    first = token_cache.tokenize(TEXTS, tokenizer)
    assert tokenized == TEXTS and len(list(folder.iterdir())) == 1
    second = token_cache.tokenize(TEXTS, tokenizer)
    assert tokenized == TEXTS and rows(first) == rows(second) == expected
    assert (second.ids.dtype, second.offsets.dtype) == (np.int32, np.int64)


def test_the_key_tells_apart_all_that_ids_depend_on(folder, tiny_bert, tokenizer, tmp_path, monkeypatch):
    lines = (tiny_bert / "vocab.txt").read_text().splitlines()
    (tmp_path / "other.txt").write_text("\n".join([*lines[:-2], lines[-1], lines[-2]]) + "\n")
    vocab = str(tiny_bert / "vocab.txt")
    others = [BertTokenizer(str(tmp_path / "other.txt")), BertTokenizer(vocab, do_lower_case=False),
              BertTokenizer(vocab, strip_accents=False), BertTokenizer(vocab, tokenize_chinese_chars=False),
              BertTokenizer(vocab, unk_token="[MASK]")]
    lists = [["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""], ["", "abc"], ["c", "ab"], ["AB", "c"]]
    paths = [token_cache.token_cache_path(lists[0], other) for other in others]
    paths += [token_cache.token_cache_path(texts, tokenizer) for texts in lists]
    for module, name, value in ((token_cache, "TOKEN_CACHE_FORMAT", 2),
                                (token_cache.unicodedata, "unidata_version", "8.0"),
                                (token_cache.inspect, "getfile", lambda thing: vocab)):  # another tokenizer.py
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            paths.append(token_cache.token_cache_path(lists[0], tokenizer))
    assert len(set(paths)) == len(paths) and {path.parent for path in paths} == {folder}
    assert paths[5] == token_cache.token_cache_path(list(lists[0]), BertTokenizer(vocab))


DAMAGE = {
    "truncated": lambda data: data[:-40], "empty": lambda data: b"", "no such file": lambda data: b"PK\x03\x04 junk",
    "a bit of the ids": lambda data: data[:-30] + bytes([data[-30] ^ 1]) + data[-29:],
    "longer": lambda data: data + b"\0" * 8, "its types": lambda data: data.replace(b"I32", b"F32"),
    "another entry": None, "a folder": None,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_made_anew(damage, folder, tokenizer, tokenized):
    expected = rows(token_cache.tokenize(TEXTS, tokenizer))
    path = token_cache.token_cache_path(TEXTS, tokenizer)
    data = path.read_bytes()
    if damage == "another entry":
        token_cache.tokenize(TEXTS[::-1], tokenizer)
        path.write_bytes(token_cache.token_cache_path(TEXTS[::-1], tokenizer).read_bytes())
    elif damage == "a folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(DAMAGE[damage](data))
        assert path.read_bytes() != data
    tokenized.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if damage == "a folder" else "error")  # silently, where it can be mended
        assert rows(token_cache.tokenize(TEXTS, tokenizer)) == expected and tokenized == TEXTS
    assert damage == "a folder" or rows(token_cache.load_tokens(path, len(TEXTS), len(tokenizer))) == expected


def test_a_disk_that_takes_nothing_costs_the_cache_alone(folder, tokenizer):
    folder.write_text("in the way")  # a file where the folder should be; root may write into any folder
    with pytest.warns(UserWarning, match="not kept for the next run: .") as caught:
        assert len(rows(token_cache.tokenize(TEXTS, tokenizer))) == len(TEXTS)
    assert len(caught) == 1 and "\n" not in str(caught[0].message)


def test_it_can_be_turned_off_and_leaves_small_and_other_things_alone(folder, tokenizer, tokenized, monkeypatch):
    class Other(BertTokenizer):
        pass

    other = Other.from_pretrained("minilm")
    assert rows(token_cache.tokenize(["a cat"], other)) == [other.encode("a cat", add_special_tokens=False)]
    monkeypatch.setenv("MINBERT_TOKEN_CACHE", "0")
    token_cache.tokenize(TEXTS, tokenizer)
    monkeypatch.delenv("MINBERT_TOKEN_CACHE")
    monkeypatch.setattr(token_cache, "TOKEN_CACHE_TEXTS", len(TEXTS) + 1)
    token_cache.tokenize(TEXTS, tokenizer)
    assert not folder.exists()


def test_what_was_used_last_is_kept(folder, tokenizer, monkeypatch):
    lists = [[f"a cat {i}", *TEXTS] for i in range(4)]
    paths = [token_cache.token_cache_path(texts, tokenizer) for texts in lists]
    for i, texts in enumerate(lists[:3]):
        token_cache.tokenize(texts, tokenizer)
        os.utime(paths[i], (time.time() - 1000 + i,) * 2)
    token_cache.tokenize(lists[0], tokenizer)  # read, and so the last used
    monkeypatch.setattr(token_cache, "TOKEN_CACHE_BYTES", 3 * paths[0].stat().st_size + 100)
    token_cache.tokenize(lists[3], tokenizer)
    assert [path.exists() for path in paths] == [True, False, True, True]


def test_a_data_set_reads_it_whatever_its_length_and_truncation(folder, tiny_bert, tokenized):
    data = [(text, TEXTS[i - 1], i % 2, f"id{i}") for i, text in enumerate(TEXTS)]
    for options in ({}, {"max_length": 6}, {"max_length": 6, "truncation": "tail"}):
        args = SimpleNamespace(pretrained=str(tiny_bert), **options)
        loader = bucket_loader(SentencePairDataset(data, args), 4, shuffle=True)
        assert sum(len(batch["sent_ids"]) for batch in loader) == len(data)
    assert sorted(tokenized) == sorted(TEXTS)
