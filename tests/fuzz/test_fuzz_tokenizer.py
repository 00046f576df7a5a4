"""Fuzzed texts: the tokenizer answers as transformers.BertTokenizer does, and keeps what it promises by itself."""

import unicodedata

from hypothesis import strategies as st

from tests.course.test_tokenizer_unicode import expected
from tests.fuzz import fuzz
from tests.helpers.tokenizer_oracle import VOCAB, assert_same, categories
from tokenizer import BertTokenizer

SPECIAL = ["[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"]
SETTINGS = ({}, {"do_lower_case": False}, {"strip_accents": False}, {"do_lower_case": False, "strip_accents": True},
            {"tokenize_chinese_chars": False})


def characters(*ranges):
    """Return a strategy: short texts of code points from the ranges (first, last)."""
    return st.text(st.one_of(*(st.characters(min_codepoint=first, max_codepoint=last, exclude_categories=("Cs",))
                               for first, last in ranges)), max_size=8)


PARTS = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=12),
    characters((0x20, 0x7E)), characters((0, 0xA0)), characters((0xC0, 0x24F), (0x300, 0x36F)),  # controls; accents
    characters((0x370, 0x5FF)), characters((0x900, 0xDFF)), characters((0x1E00, 0x20CF)),  # Greek to Hebrew; signs
    characters((0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0x20000, 0x2FA1F)),  # CJK
    characters((0x1F1E6, 0x1FAFF), (0x200B, 0x200F), (0xFE00, 0xFE0F)),  # emoji, joiners, variants
    st.sampled_from([*SPECIAL, "[mask]", "[MASK", "[[MASK]]", "[MA\u200dSK]", "##s", "##", "[unused1]", "the", "naïve",
                     "\u0130", "\u1e9e", "\u03a3", "\ufb01", "\ufffd", "\x00", "\x85", "\u2028", "\xa0", "\u3000"]),
    st.builds(str.__mul__, st.sampled_from(["x", "é", "ab", "\u0301", "漢", "!"]), st.sampled_from([50, 100, 101])),
)
TEXTS = st.lists(st.one_of(PARTS, PARTS, st.sampled_from([" ", "", "\t", "\n"])), max_size=6).map("".join)
OPTIONS = {
    "padding": st.sampled_from([True, False, "longest", "max_length", "do_not_pad"]),
    "truncation": st.sampled_from([True, False, None, "longest_first", "do_not_truncate"]),
    "max_length": st.one_of(st.none(), st.integers(0, 40)), "add_special_tokens": st.booleans()}
OPTIONS = st.one_of(
    st.fixed_dictionaries({}, optional=OPTIONS), st.fixed_dictionaries(OPTIONS),
    st.fixed_dictionaries({"truncation": st.just(True), "max_length": st.integers(2, 12)}))  # almost always cut
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3)
ARGUMENTS = st.one_of(
    st.tuples(TEXTS), st.tuples(TEXTS, TEXTS), st.tuples(st.lists(TEXTS, min_size=1, max_size=3)),
    PAIRS.map(lambda pairs: ([a for a, _ in pairs], [b for _, b in pairs])))


def without(value, code_points):
    """Return a text, or a tuple or list of such values, without these code points."""
    if isinstance(value, str):
        return value.translate(dict.fromkeys(code_points))
    return type(value)(without(item, code_points) for item in value)


def text_of(value):
    """Return all texts of a nested value, one after the other."""
    return value if isinstance(value, str) else "".join(map(text_of, value))


def test_against_the_oracle(record):
    calls = []
    n = fuzz(lambda arguments, options: calls.append((arguments, options)), 600, ARGUMENTS, OPTIONS)
    code_points = sorted({ord(char) for arguments, _ in calls for char in text_of(arguments)})
    theirs = categories(code_points)
    differ = [point for point, category in zip(code_points, theirs, strict=True) if category != expected(point)]
    for point in differ:  # the exceptions in the tokenizer's docstring: newer than Unicode 8, or changed since
        assert unicodedata.ucd_3_2_0.category(chr(point)) == "Cn" or point in (0x166D, 0x1734, 0x1885, 0x1886)
    calls = [(list(without(arguments, differ)), options) for arguments, options in calls]
    for number, settings in enumerate(SETTINGS):
        assert_same(BertTokenizer(VOCAB, **settings), calls[number::len(SETTINGS)], **settings)
    record("Fuzzing", "texts of any Unicode, special tokens and words of 100 letters, alone, in pairs and lists, with "
           "any truncation and padding", "the ids, types and masks of transformers.BertTokenizer",
           f"{n} examples with {len(code_points)} different characters, {len(differ)} of which it knows otherwise")


def test_by_itself(record):
    tokenizers = [BertTokenizer(VOCAB, **settings) for settings in SETTINGS]

    def check(text, other, cased, max_length):
        tokenizer = tokenizers[cased]
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert all(0 <= i < len(tokenizer) for i in ids)
        assert ids == BertTokenizer.encode(fresh(tokenizer), text, add_special_tokens=False)  # whatever it remembers
        both = ids + tokenizer.encode(other, add_special_tokens=False)
        assert tokenizer.encode(f"{text} {other}", add_special_tokens=False) == both
        assert tokenizer.encode(tokenizer.decode(ids), add_special_tokens=False) == ids

        row = tokenizer(text, other or None, truncation=True, max_length=max_length)
        assert len(row.input_ids) == len(row.token_type_ids) == len(row.attention_mask) <= max_length
        cut = tokenizer(text, truncation=True, max_length=max_length).input_ids
        assert cut == [tokenizer.cls_token_id, *ids[:max_length - 2], tokenizer.sep_token_id]

    n = fuzz(check, 300, TEXTS, TEXTS, st.integers(0, len(SETTINGS) - 1), st.integers(3, 20))
    record("Fuzzing", "texts of any Unicode, tokenized, decoded and tokenized again", "the same ids, within max_length",
           f"{n} examples")


def fresh(tokenizer):
    """Return the tokenizer with an empty memory."""
    tokenizer._memo.clear()
    return tokenizer


def test_lone_surrogates(record):
    tokenizer = BertTokenizer(VOCAB)

    def check(text, surrogates, place):
        place = min(place, len(text))
        ids = tokenizer.encode(text[:place] + surrogates + text[place:])
        assert ids == tokenizer.encode(text) or any(token in text for token in SPECIAL)

    n = fuzz(check, 150, TEXTS, st.text(st.characters(categories=("Cs",)), min_size=1, max_size=3), st.integers(0, 40))
    record("Fuzzing", "texts with lone surrogates in them", "the ids of the text without them", f"{n} examples")
