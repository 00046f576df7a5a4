"""The tokenizer against transformers.BertTokenizer: code points one by one, and random Unicode."""

import random
import unicodedata

import pytest

from tests.helpers.tokenizer_oracle import VOCAB, assert_same, categories
from tokenizer import BertTokenizer

IDEOGRAPHS = [(0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF), (0x2A700, 0x2B81F),
              (0x2B920, 0x2CEAF), (0x2F800, 0x2FA1F)]


def expected(code_point):
    """What Python's tables make of a character, in the words of `categories`."""
    char, category = chr(code_point), unicodedata.category(chr(code_point))
    if char in "\t\n\r" or category[0] == "Z":
        return "space"
    if char == "\ufffd" or category in ("Cc", "Cf", "Co"):
        return "drop"
    if category[0] == "P" or char in "$+<=>^`|~" or any(first <= code_point <= last for first, last in IDEOGRAPHS):
        return "apart"
    return "accent" if category == "Mn" else "letter"


@pytest.fixture(scope="module")
def agreed():
    """The code points of which both sides think alike; the others are the exceptions in the tokenizer's docstring."""
    edges = [point + step for ends in IDEOGRAPHS for point in ends for step in (-1, 0, 1)]
    code_points = sorted({
        *range(0x3400), *range(0x3400, 0xF900, 16), *range(0xF900, 0x17000), *range(0x1B000, 0x1FC00),
        *range(0x20000, 0x110000, 999), *range(0xE0000, 0xE0200), *edges,
    } - {*range(0xD800, 0xE000)})
    theirs = categories(code_points)
    differ = {point for point, category in zip(code_points, theirs, strict=True) if category != expected(point)}
    old = {point for point in differ if unicodedata.ucd_3_2_0.category(chr(point)) != "Cn"}
    assert old <= {0x166D, 0x1734, 0x1885, 0x1886} and len(differ) < 1_000  # the rest is newer than Unicode 3.2
    return [point for point in code_points if point not in differ]


def test_every_code_point(agreed):
    texts = [f"a{char}b {char}\u0301 9{char}" for char in map(chr, agreed)]
    assert len(texts) > 60_000
    assert_same(BertTokenizer(VOCAB), [([texts[start : start + 10_000]], {}) for start in range(0, len(texts), 10_000)])


def random_texts(generator, agreed, count):
    """Return `count` texts of up to 80 characters, each from a mixture of scripts, and some huge words."""
    emoji = [*range(0x1F600, 0x1F650), 0x1F1E6, 0x1F3FD, 0x200D, 0xFE0F, 0x2764]
    cjk = [*range(0x4E00, 0x4F00), *range(0xAC00, 0xAD00), *range(0x3040, 0x30FF)]
    letters, accents, controls = range(0x41, 0x250), range(0x300, 0x370), [*range(0x21), *range(0x7F, 0xA1)]
    pools, texts = [agreed, letters, accents, emoji, cjk, controls, range(0x21, 0x7F), [0x20]], []
    for length in generator.choices([1, 5, 20, 80], k=count):
        weights = [generator.random() ** 3 for _ in pools]
        texts.append("".join(chr(generator.choice(pool)) for pool in generator.choices(pools, weights, k=length)))
    huge = ["é" * 100_000, "a!" * 50_000, "\u0301" * 100_000, "漢" * 100_000]
    return [*texts, *huge, "x" * 101 + "\u0301", "x" * 100 + "\u0301"]


@pytest.mark.parametrize("settings", [
    {}, {"do_lower_case": False}, {"strip_accents": False}, {"do_lower_case": False, "strip_accents": True},
    {"tokenize_chinese_chars": False},
])
def test_random_unicode(agreed, settings):
    texts = random_texts(random.Random(str(settings)), agreed, 1_500)
    assert_same(BertTokenizer(VOCAB, **settings), [([texts], {})], **settings)
