"""A vocabulary, its settings or a file of the token cache that is damaged or absurd: one message, or made anew."""

import json

import numpy as np
import pytest
from safetensors.numpy import save

from bert import BertModel
from config import BertConfig
from engine import token_cache
from engine.batching import Sequences
from engine.token_cache import token_digest
from files.errors import UserError
from tests.files.test_hostile_config import SMALL
from tests.helpers.hostile import refused
from tokenizer import BertTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SAYS = "one error that names the file and the line"


def lines(*tokens):
    """Return the bytes of a vocabulary."""
    return "".join(f"{token}\n" for token in tokens).encode()


VOCABULARIES = {
    "no [CLS]": (lines(*SPECIAL[:2], *SPECIAL[3:], "a"), r"vocab.txt: none of lines 1 to 5 is [CLS]"),
    "no special token": (lines("a", "b"), r"vocab.txt: none of lines 1 to 2 is [UNK] or [SEP] or [PAD] or [CLS]"),
    "a web page in it": (b"<!DOCTYPE html><p>Log in</p>", "is [UNK] or [SEP] or [PAD] or [CLS] or [MASK]; expected one "
                         "token a line: fetch the file again, or mend it"),
    "nothing in it": (b"", "vocab.txt, line 1: empty"),
    "an empty line": (lines(*SPECIAL, "", "a"), "vocab.txt, line 6: empty"),
    "a token twice": (lines(*SPECIAL, "a", "a"), "vocab.txt, line 7: 'a' stands in line 6 already"),
    "a line of 10 MB": (lines(*SPECIAL, "a" * 10**7), "vocab.txt, line 6: 10,000,000 characters"),
    "a NUL byte": (lines(*SPECIAL, "a\0b"), "vocab.txt, line 6: a NUL byte"),
    "UTF-16 text": ("\n".join(SPECIAL).encode("utf-16"), "vocab.txt, line 1: not UTF-8 text"),
    "bytes that are no UTF-8": (lines(*SPECIAL) + b"a\nb\xff\n", "vocab.txt, line 7: not UTF-8 text"),
    "30,000 tokens where the embedding has 30": (
        lines(*SPECIAL, *range(29_995)), "has 30,000 tokens and DIR/config.json a vocab_size of 30"),
}


@pytest.mark.parametrize("given", VOCABULARIES)
def test_vocabularies(given, tmp_path, record):
    content, message = VOCABULARIES[given]
    (tmp_path / "vocab.txt").write_bytes(content)
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    said = refused("tokenizer", tmp_path, record, f"vocab.txt with {given}", SAYS, tmp_path)
    assert message in said.replace(str(tmp_path), "DIR")


def test_a_gigabyte_and_a_folder(tmp_path, record):
    with open(tmp_path / "vocab.txt", "wb") as file:
        file.truncate(2**30)
    assert "has more than 67,108,864 bytes" in refused(
        "tokenizer", tmp_path, record, "vocab.txt of 1 GB", "refused unread, its size named", tmp_path)
    (tmp_path / "vocab.txt").unlink()
    (tmp_path / "vocab.txt").mkdir()
    assert "holds no vocab.txt" in refused(
        "tokenizer", tmp_path, record, "a folder called vocab.txt", "no such file", tmp_path)


SETTINGS = {
    "model_max_length -5": ({"model_max_length": -5}, "model_max_length is -5 and must be an integer from 2"),
    "model_max_length NaN": ({"model_max_length": float("nan")}, "model_max_length is nan"),
    "model_max_length as text": ({"model_max_length": "512"}, "model_max_length is '512'"),
    "do_lower_case as text": ({"do_lower_case": "no"}, "do_lower_case is 'no' and must be False or True"),
    "a number for unk_token": ({"unk_token": 5}, "unk_token must be one of the tokens in vocab.txt"),
    "a pad_token that is not in vocab.txt": ({"pad_token": "<pad>"}, "vocab.txt: none of lines 1 to 5 is <pad>"),
    "a list in place of an object": ([1], "must hold one JSON object, not list"),
}


@pytest.mark.parametrize("given", SETTINGS)
def test_settings(given, tmp_path, record):
    settings, message = SETTINGS[given]
    (tmp_path / "vocab.txt").write_bytes(lines(*SPECIAL))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert message in refused("tokenizer", tmp_path, record, f"tokenizer_config.json with {given}",
                              "one error with the setting, its value and what is valid", tmp_path)


def test_settings_of_none_and_vocabularies_shorter_than_the_embedding_load(tmp_path):
    (tmp_path / "vocab.txt").write_bytes(lines(*SPECIAL, "a"))
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": null, "strip_accents": null, "unk_token": '
                                                    '{"content": "[UNK]"}, "model_input_names": [1]}')
    BertModel(BertConfig(**SMALL)).save_pretrained(tmp_path)
    tokenizer = BertTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode("a b") == [2, 5, 1, 3] and tokenizer.model_max_length == 512
    with pytest.raises(UserError, match="vocab_size of 5"):
        BertConfig(**{**SMALL, "vocab_size": 5}).save_pretrained(tmp_path)
        BertTokenizer.from_pretrained(tmp_path)


CACHED = {  # files of the token cache with the right key and digest: (ids, offsets)
    "ids beyond the vocabulary": ([10**6, 7], [0, 1, 2]), "negative ids": ([-1, 7], [0, 1, 2]),
    "offsets beyond the ids": ([7, 7], [0, 1, 10**9]), "offsets that fall": ([7, 7], [0, 3, 2]),
    "offsets that do not begin at 0": ([7, 7], [1, 1, 2]), "fewer rows than texts": ([7, 7], [0, 2]),
    "ids as float32": (np.array([7, 7], np.float32), [0, 1, 2]), "ids in two dimensions": ([[7, 7]], [0, 1, 2]),
    "ids of 64 and offsets of 32 bits": (np.array([7, 7]), np.array([0, 1, 2], np.int32)),
}


@pytest.mark.parametrize("given", CACHED)
def test_the_token_cache(given, tmp_path, bert_dir, monkeypatch, record):
    monkeypatch.setattr(token_cache, "TOKEN_CACHE_TEXTS", 1)
    monkeypatch.setattr(token_cache, "default_cache_dir", lambda: tmp_path)
    monkeypatch.delenv("MINBERT_TOKEN_CACHE", raising=False)
    tokenizer, texts = BertTokenizer.from_pretrained(bert_dir), ["a film", "the cat"]
    expected = token_cache.tokenize(texts, tokenizer)
    path, (ids, offsets) = token_cache.token_cache_path(texts, tokenizer), CACHED[given]
    ids = ids if isinstance(ids, np.ndarray) else np.array(ids, np.int32)
    offsets = offsets if isinstance(offsets, np.ndarray) else np.array(offsets, np.int64)
    metadata = {"key": path.stem, "sha256": token_digest(*Sequences(ids, offsets)[:2])}
    path.write_bytes(save({"ids": ids, "offsets": offsets}, metadata))
    tokens = token_cache.tokenize(texts, tokenizer)
    assert tokens.ids.tolist() == expected.ids.tolist() and tokens.offsets.tolist() == expected.offsets.tolist()
    record("Hostile files", f"a token cache's file with {given}, its digest right", "the texts are tokenized anew",
           "the same ids as without a cache")
