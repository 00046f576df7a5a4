"""The tokenizer by hand-made cases: words, pieces, ids, truncation, padding, files. No oracle here."""

import pickle
import random

import pytest
import torch

import tokenizer as module
from files.errors import UserError
from tokenizer import BasicTokenizer, BatchEncoding, BertTokenizer, WordpieceTokenizer, longest_first

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # ids 0 to 4
WORDS = ["a", "ab", "abc", "##c", "##d", "##cd", "naive", "##s", "!", "中", "[", "]", "mask", "'", "Ab"]  # ids 5 to 19


def write_vocab(path, tokens=SPECIAL + WORDS):
    path.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    return path


@pytest.fixture
def small(tmp_path):
    return BertTokenizer(write_vocab(tmp_path / "vocab.txt"))


def test_the_docstrings_example():
    tokenizer = BertTokenizer.from_pretrained("minilm")
    assert tokenizer.tokenize("Unaffably naïve!") == ["una", "##ffa", "##bly", "naive", "!"]
    assert tokenizer.encode("Unaffably naïve!") == [101, 14477, 20961, 6321, 15743, 999, 102]
    assert (len(tokenizer), tokenizer.vocab_size, tokenizer.model_max_length) == (30522, 30522, 512)


@pytest.mark.parametrize("text, words", [
    ("  Don't\tSTOP\nnow ", ["don", "'", "t", "stop", "now"]),
    ("Éclair e\u0301t\u00e9 \u0130", ["eclair", "ete", "i"]),  # composed and decomposed accents
    ("漢字kana\uff01", ["漢", "字", "kana", "\uff01"]),
    ("a\x00b c\u200dd \ufffde f\x85g \ud800h", ["ab", "cd", "e", "fg", "h"]),  # controls, joiner, a lone surrogate
    ("x\u00a0y\u2028z $5^2", ["x", "y", "z", "$", "5", "^", "2"]),
    ("ΟΔΟΣ 😀!", ["οδοσ", "😀", "!"]),  # no final sigma: letter by letter
    ("", []),
])
def test_basic_tokenizer(text, words):
    assert BasicTokenizer().tokenize(text) == words


def test_basic_tokenizer_options():
    assert BasicTokenizer(do_lower_case=False).tokenize("Été!") == ["Été", "!"]
    assert BasicTokenizer(do_lower_case=False, strip_accents=True).tokenize("Été!") == ["Ete", "!"]
    assert BasicTokenizer(strip_accents=False).tokenize("Été") == ["été"]
    assert BasicTokenizer(tokenize_chinese_chars=False).tokenize("漢字") == ["漢字"]
    assert BasicTokenizer(never_split=["[X]"]).tokenize("[X] [Y]", never_split=["B!"]) == ["[X]", "[", "y", "]"]


def test_wordpiece_takes_the_longest_piece_next():
    wordpiece = WordpieceTokenizer(dict.fromkeys(["a", "ab", "abc", "##c", "##d", "##cd"]))
    assert wordpiece.tokenize("abcd") == ["abc", "##d"]  # neither ab ##cd nor a shortest piece first
    assert wordpiece.tokenize("acd abc a") == ["a", "##cd", "abc", "a"]
    stuck = WordpieceTokenizer(dict.fromkeys(["a", "ab", "##bc"]))
    assert stuck.tokenize("abc") == ["[UNK]"]  # a ##bc would do, but the longest piece leaves a c behind


def test_a_long_word_is_unknown_and_costs_nothing():
    class Counting(dict):
        looks = 0

        def __contains__(self, key):
            Counting.looks += 1
            return super().__contains__(key)

    wordpiece = WordpieceTokenizer(Counting.fromkeys(["a", "##a"]))
    assert wordpiece.tokenize("a" * 100) == ["a"] + 99 * ["##a"]
    before = Counting.looks
    assert wordpiece.tokenize("a" * 101) == wordpiece.tokenize("a" * 100_000) == ["[UNK]"]
    assert before <= 100 * len("##a") and Counting.looks == before


def test_rows_and_pairs(small):
    row = small("ab!", "中Ab")
    assert row == {"input_ids": [2, 6, 13, 3, 14, 6, 3], "token_type_ids": [0, 0, 0, 0, 1, 1, 1],
                   "attention_mask": [1] * 7}
    assert small.encode("ab", add_special_tokens=False) == [6] and small.encode("") == [2, 3]
    assert small.encode("[MASK]s [mask] xs") == [2, 4, 1, 15, 17, 16, 1, 3]  # a special token only as it is written
    batch = small(["ab", "a a a"], padding=True, return_tensors="pt")
    assert batch.input_ids.tolist() == [[2, 6, 3, 0, 0], [2, 5, 5, 5, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert {value.dtype for value in batch.values()} == {torch.long}
    assert small.batch_encode_plus([("a", "ab")]) == small(["a"], ["ab"])
    cut = small("a a a a", "ab ab", truncation=True, max_length=6, padding="max_length")
    assert cut["input_ids"] == [2, 5, 5, 3, 6, 3]
    assert len(small("a " * 600, truncation=True).input_ids) == 512 and len(small("a " * 600).input_ids) == 602


def test_longest_first_takes_from_the_longer():
    cases = {(7, 3, 9): (6, 3), (3, 7, 9): (3, 6), (5, 5, 9): (4, 5), (9, 8, 5): (3, 2), (2, 3, 5): (2, 3)}
    assert {case: longest_first(*case) for case in cases} == cases
    for length1, length2, budget in ((a, b, n) for a in range(8) for b in range(8) for n in range(16)):
        kept1, kept2 = longest_first(length1, length2, budget)
        assert kept1 + kept2 == min(budget, length1 + length2) and kept1 <= length1 and kept2 <= length2


def test_batch_encoding_is_a_dict_with_attributes():
    encoding = BatchEncoding(input_ids=torch.ones(1, 2), labels=["x"])
    assert encoding.to("meta") is encoding and encoding.input_ids.device.type == "meta" and encoding.labels == ["x"]
    assert dict(**encoding).keys() == {"input_ids", "labels"} and pickle.loads(pickle.dumps(BatchEncoding(a=1))).a == 1
    with pytest.raises(AttributeError, match="input_ids, labels"):
        encoding.token_types


def test_the_memo_changes_nothing_and_stays_small(small, monkeypatch):
    generator = random.Random(0)
    texts = ["".join(generator.choices("abcd !é中A's", k=30)) for _ in range(200)]
    cold, warm = [small.encode(text) for text in texts], [small.encode(text) for text in texts]
    monkeypatch.setattr(module, "MEMO_WORDS", 3)
    small._memo.clear()
    assert cold == warm == [small.encode(text) for text in texts] and len(small._memo) == 3
    assert pickle.loads(pickle.dumps(small)).encode("abcd") == small.encode("abcd") == [2, 7, 9, 3]
    monkeypatch.setattr(module, "MEMO_WORDS", 10)
    assert len(small.encode("a!" * 50_000)) == 100_002 and max(map(len, small._memo)) <= module.MEMO_CHARS


def test_ids_and_texts(small):
    assert small.convert_tokens_to_ids(["ab", "zzz"]) == [6, 1] and small.convert_tokens_to_ids("zzz") == 1
    assert small.convert_ids_to_tokens([2, 6, 99], skip_special_tokens=True) == ["ab", None]
    assert small.decode(torch.tensor([2, 7, 9, 13, 18, 12, 3])) == "[CLS] abcd! 's [SEP]"
    assert small.batch_decode([[2, 5, 3], [6]], skip_special_tokens=True) == ["a", "ab"] and small.decode(5) == "a"
    assert small.decode([5, 18, 5], clean_up_tokenization_spaces=True) == "a'a"


def test_settings_are_saved_and_read(small, tmp_path):
    BertTokenizer(tmp_path / "vocab.txt", do_lower_case=False, model_max_length=7).save_pretrained(tmp_path / "saved")
    again = BertTokenizer.from_pretrained(str(tmp_path / "saved"))
    assert again.vocab == small.vocab and again.encode("Ab") == [2, 19, 3] and again.model_max_length == 7
    assert BertTokenizer.from_pretrained(tmp_path / "saved", do_lower_case=True).encode("Ab") == [2, 6, 3]
    (tmp_path / "saved" / "tokenizer_config.json").write_text('{"model_max_length": 1e30, "do_lower_case": false}')
    (tmp_path / "saved" / "model.safetensors").touch()
    unset = BertTokenizer.from_pretrained(tmp_path / "saved" / "model.safetensors")
    assert unset.encode("Ab") == [2, 19, 3] and unset.model_max_length == 512
    for name, ids in (("my-cased", [2, 19, 3]), ("my-uncased", [2, 6, 3])):  # no tokenizer_config.json: by the name
        (tmp_path / name).mkdir()
        write_vocab(tmp_path / name / "vocab.txt")
        assert BertTokenizer.from_pretrained(tmp_path / name).encode("Ab") == ids


@pytest.mark.parametrize("content, message", [
    (b"", "line 1: empty"), (b"[PAD]\n\na\n", "line 2: empty"), (b"a\nb\na\n", "line 3: 'a' stands in line 1 already"),
    (b"a\n\xff\n", "line 2: not UTF-8"), (b"[PAD]\n[UNK]\n[CLS]\n", r"lines 1 to 3 is \[SEP\] or \[MASK\]"),
])
def test_a_bad_vocabulary_is_named(tmp_path, content, message):
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(UserError, match=f"bad.txt.*{message}"):
        BertTokenizer(tmp_path / "bad.txt")


@pytest.mark.parametrize("arguments, options, error", [
    ((None,), {}, TypeError), ((["a", float("nan")],), {}, TypeError), ((["a"], "b"), {}, ValueError),
    ((["a"], ["b", "c"]), {}, ValueError), (("a",), {"padding": "most"}, ValueError),
    ((["a", "a a"],), {"return_tensors": "pt"}, ValueError), (("a",), {"truncation": "only_first"}, ValueError),
])
def test_wrong_arguments(small, arguments, options, error):
    with pytest.raises(error):
        small(*arguments, **options)
