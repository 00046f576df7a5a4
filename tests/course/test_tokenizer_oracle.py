"""The tokenizer against transformers.BertTokenizer: the course's texts, truncation and padding, decoding, files."""

import csv
import random

import pytest

from tests.helpers.tokenizer_oracle import VOCAB, assert_same
from tokenizer import BertTokenizer


@pytest.fixture
def ours():
    return BertTokenizer.from_pretrained("minilm")


def cells(path, delimiter):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL))


def test_course_texts(ours, course_dir):
    """Every 40th row of every file at hand: all cells alone, as they are and in lower case, and pairs as pairs."""
    csv.field_size_limit(10**9)
    texts, pairs = [], []
    for path in sorted(course_dir.glob("*.csv")):
        rows = cells(path, "\t")[1::40]
        texts += [cell for row in rows for cell in row]
        if path.name.startswith(("quora", "sts")):
            pairs += [row[2:4] for row in rows]
    for path in sorted(course_dir.parent.glob("extra/*")):
        texts += [cell for row in cells(path, "," if path.suffix == ".csv" else "\t")[::40] for cell in row]
    for path in [*course_dir.parent.glob("cola/*"), *course_dir.parent.glob("text/*")]:
        texts += path.read_text("utf-8").split("\n")[::40]
    texts += [text.lower().strip() for text in texts]
    assert len(texts) > 5_000 and len(pairs) > 500
    assert_same(ours, [([texts], {}), ([[a for a, _ in pairs], [b for _, b in pairs]], {})])
    batches = [texts[start : start + 8] for start in range(0, len(texts), 400)]
    assert_same(ours, [([batch], {"padding": True, "truncation": True, "max_length": 40}) for batch in batches])


def test_truncation_and_padding(ours):
    words = [" ".join("abcdefg"[:n]) for n in range(8)]
    firsts, seconds = [a for a in words for _ in words], [b for _ in words for b in words]
    calls = [([firsts, seconds], {"truncation": True, "max_length": n, "add_special_tokens": special})
             for n in range(20) for special in (True, False)]
    for arguments in (["a b c d e"], ["a b c", ""], ["a b c", "d e f"], [firsts], [firsts, seconds]):
        for padding in (True, False, "longest", "max_length", "do_not_pad"):
            for truncation in (True, False, None, "longest_first", "do_not_truncate"):
                calls += [(arguments, {"padding": padding, "truncation": truncation, "max_length": n})
                          for n in (None, 2, 3, 6, 12)]
    assert_same(ours, calls)
    assert_same(ours, [(["a " * 600, "b " * n], {"truncation": True}) for n in (0, 1, 255, 256, 600)])


def test_special_tokens_in_the_text(ours):
    texts = ["a [MASK]b[SEP][CLS] [mask] [MASK", "[[MASK]]\u0301", "[MA\u200dSK] [UNK]x", "é[PAD]é ##s [unused1]"]
    assert_same(ours, [([text], {}) for text in texts])
    assert_same(ours, [([text], {}) for text in texts], "tokenize")


def test_decode(ours):
    generator = random.Random(0)
    rows = [[generator.randrange(30_600) for _ in range(20)] for _ in range(300)] + [[i] for i in range(0, 30_522, 50)]
    rows += [ours.encode("I do n't know . It ' s what they 've said , is n't it ? [MASK] !"), []]
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": True}
    assert_same(ours, [([row], {}) for row in rows] + [([row], options) for row in rows], "decode")
    tokens = ["the", "##s", "[MASK]", "zzzz", "The"]
    assert_same(ours, [([tokens], {}), (["the"], {}), (["zzzz"], {})], "convert_tokens_to_ids")
    assert_same(ours, [([[0, 101, 1996, 2]], {"skip_special_tokens": True}), ([7], {})], "convert_ids_to_tokens")


def test_transformers_loads_what_is_saved(tmp_path):
    tokenizer = BertTokenizer(VOCAB, do_lower_case=False, model_max_length=9)
    tokenizer.save_pretrained(tmp_path)
    text = "Été [MASK] in Paris, the City of 12 a b c d"
    assert len(tokenizer(text, truncation=True).input_ids) == 9
    assert_same(tokenizer, [([text], {"truncation": True})], folder=str(tmp_path))
