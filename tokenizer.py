"""WordPiece tokenizer of BERT: text → words → pieces → ids (Wu et al. 2016; Devlin et al. 2019).

    "Unaffably naïve!" → unaffably naive ! → una ##ffa ##bly naive ! → 14477 20961 6321 15743 999

`BasicTokenizer` finds the words, `WordpieceTokenizer` cuts a word into pieces, `BertTokenizer` adds special tokens,
truncates, pads, and remembers the ids of the words that it has seen, which makes it fast.

Ids, token types, masks, padding and truncation equal those of transformers' BertTokenizer (a Rust program, whose
tables stop at Unicode 8) wherever its tables and Python's give a code point the same category. The exceptions:

- Newer code points. Punctuation and accents that entered Unicode after version 8 (U+2E43, U+0898), or changed their
  category since (U+166D, U+1734, U+1885, U+1886, U+111C9), are here what Python's tables say and there what they were.
  Of Python 3.11's code points these are 105 marks of punctuation and 385 accents.
- Format controls that entered later (U+0890, U+0891, U+08E2, U+110CD, U+13430 and following) are dropped here and stay
  there. All others are dropped by both, as are the C0 and C1 controls but tab, line feed and carriage return, even the
  white space among them (U+000B, U+000C, U+0085): "a\\x85b" is the one word "ab".
- A lone surrogate is dropped here and a TypeError there.
- Without a tokenizer_config.json, texts are truncated to 512 tokens here and not at all there.
"""

import json
import re
import unicodedata
from functools import lru_cache
from pathlib import Path

import torch

from config import check_choice, check_number
from files.errors import UserError
from files.json_object import read_json
from files.pretrained import CONFIG_NAME, VOCAB_NAME, pretrained_file
from files.writing import atomic_write, named

TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
MEMO_WORDS = 100_000  # at most so many words are remembered, about 16 MB of English
MEMO_CHARS = 64  # and none that is longer
MAX_VOCAB_BYTES, MAX_TOKEN_CHARS = 2**26, 1000  # of a vocabulary and one of its tokens; real ones have 5 MB and 50
EXPECTED = "expected one token a line: fetch the file again, or mend it"
# An ideograph is a word of its own. The gap after U+2B81F is the oracle's: that block begins at U+2B820.
IDEOGRAPHS = re.compile(
    "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002b81f\U0002b920-\U0002ceaf"
    "\U0002f800-\U0002fa1f]"
)
# Arguments of BertTokenizer that stand in tokenizer_config.json.
SETTINGS = {"do_lower_case", "tokenize_chinese_chars", "strip_accents", "model_max_length", "unk_token", "sep_token",
            "pad_token", "cls_token", "mask_token"}
CHOICES = {"padding": (True, False, "longest", "max_length", "do_not_pad"),
           "truncation": (True, False, "longest_first", "do_not_truncate"), "return_tensors": (None, "pt")}
# What the oracle joins when it turns pieces into text.
CLEAN_UP = {" .": ".", " ?": "?", " !": "!", " ,": ",", " ' ": "'", " n't": "n't", " 'm": "'m", " 's": "'s",
            " 've": "'ve", " 're": "'re"}


def load_vocab(vocab_file):
    """Return {token: id} from a file with one token a line; raise UserError naming file and line if it is no such."""
    with named(vocab_file), open(vocab_file, "rb") as file:
        data, vocab = file.read(MAX_VOCAB_BYTES + 1), {}
    if len(data) > MAX_VOCAB_BYTES:
        raise UserError(f"{vocab_file} has more than {MAX_VOCAB_BYTES:,} bytes: this is no vocabulary, fetch it again")
    try:
        lines = data.decode("utf-8").replace("\r\n", "\n").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{vocab_file}, line {number}: not UTF-8 text; {EXPECTED}") from error
    for number, token in enumerate(lines, start=1):
        if not token or "\0" in token or len(token) > MAX_TOKEN_CHARS:
            what = "empty" if not token else "a NUL byte" if "\0" in token else f"{len(token):,} characters"
            raise UserError(f"{vocab_file}, line {number}: {what}; {EXPECTED}")
        if token in vocab:
            raise UserError(f"{vocab_file}, line {number}: {token!r} stands in line {vocab[token] + 1} already; "
                            f"{EXPECTED}")
        vocab[token] = number - 1
    return vocab


def read_settings(config_file):
    """Return the SETTINGS that stand in a tokenizer_config.json; raise UserError for one that cannot be."""
    settings, found = {}, read_json(config_file)
    for name in sorted(SETTINGS & found.keys()):
        value = found[name].get("content") if isinstance(found[name], dict) else found[name]
        if value is None:
            continue
        if name == "model_max_length":
            if isinstance(value, (int, float)) and value > 1e20:  # transformers' way to say that nobody has set it
                continue
            check_number(config_file, name, value, 2, 10**20)
        elif not name.endswith("_token"):
            check_choice(config_file, name, value, (False, True))
        elif not isinstance(value, str) or not value:
            raise UserError(f"{config_file}: {name} must be one of the tokens in {VOCAB_NAME}")
        settings[name] = value
    return settings


def smaller(a, b):
    """Return the smaller of two integers, or of each two in arrays or tensors (N,)."""
    return b + (a - b) * (a < b)


def longest_first(length1, length2, budget):
    """Return the lengths to which pairs are cut so that they fit `budget`, the longer text first.

    Lengths are integers, arrays or tensors (N,). With lo <= hi the two lengths of a pair (the first is lo when they are
    equal): lo' = min(lo, budget // 2), hi' = min(hi, budget - lo').
    """
    least = budget // 2 + (length1 > length2) * (budget % 2)  # what the first keeps, however long the second is
    kept1 = smaller(length1, budget - smaller(length2, budget - least))
    return kept1, smaller(length2, budget - kept1)


def is_punctuation(char):
    """Tell whether a character is punctuation in Unicode or one of the ASCII symbols, which count as such here."""
    return unicodedata.category(char)[0] == "P" or char in "$+<=>^`|~"


class CharacterTable(dict):
    """Table for `str.translate` that asks `rule(char) -> str` once for every character that occurs."""

    def __init__(self, rule):
        super().__init__()
        self.rule = rule

    def __missing__(self, code_point):
        self[code_point] = self.rule(chr(code_point))
        return self[code_point]


class BasicTokenizer:
    """Split text into words: at white space, around every punctuation character and every ideograph.

    Lower-cased words also lose their accents unless `strip_accents=False`. Words in `never_split` stay as they are.
    """

    def __init__(self, do_lower_case=True, never_split=None, tokenize_chinese_chars=True, strip_accents=None):
        self.do_lower_case = do_lower_case
        self.never_split = frozenset(never_split or ())
        self.tokenize_chinese_chars = tokenize_chinese_chars
        self.strip_accents = do_lower_case if strip_accents is None else strip_accents
        self._cleaned, self._folded = CharacterTable(self._clean_character), CharacterTable(self._fold_character)

    def tokenize(self, text, never_split=None):
        """Return the words of `text`, a list of strings."""
        whole, words = self.never_split.union(never_split or ()), []
        for chunk in self.clean(text).split():
            words += [chunk] if chunk in whole else self.fold(chunk)
        return words

    def clean(self, text):
        """Return `text` without control characters, with plain spaces for white space and around ideographs."""
        if text.isprintable() and (text.isascii() or not (IDEOGRAPHS.search(text) or "\ufffd" in text)):
            return text  # isprintable: no control character and no white space but the plain space
        return text.translate(self._cleaned)

    def fold(self, chunk):
        """Return the words of a piece of cleaned text without spaces: lower case, no accents, punctuation apart."""
        if chunk.isascii() and chunk.isalnum():
            return [chunk.lower() if self.do_lower_case else chunk]
        if self.strip_accents:
            chunk = unicodedata.normalize("NFD", chunk)  # é → e and a combining accent
        return chunk.translate(self._folded).split()

    def _clean_character(self, char):
        category = unicodedata.category(char)
        if char in "\t\n\r" or category in ("Zs", "Zl", "Zp"):
            return " "
        if char == "\ufffd" or category in ("Cc", "Cf", "Co", "Cs"):  # a code point without a character (Cn) stays
            return ""
        return f" {char} " if self.tokenize_chinese_chars and IDEOGRAPHS.match(char) else char

    def _fold_character(self, char):
        if is_punctuation(char):
            return f" {char} "
        if self.strip_accents and unicodedata.category(char) == "Mn":
            return ""
        return char.lower() if self.do_lower_case else char


class WordpieceTokenizer:
    """Cut words into the pieces of a vocabulary: always the longest that fits next, "##" before all but the first."""

    def __init__(self, vocab, unk_token="[UNK]", max_input_chars_per_word=100):
        self.vocab, self.unk_token, self.max_input_chars_per_word = vocab, unk_token, max_input_chars_per_word
        self._longest = max(map(len, vocab))

    def tokenize(self, text):
        """Return the pieces of all words of `text`, which white space separates."""
        return [piece for word in text.split() for piece in self.cut(word)]

    def cut(self, word):
        """Return the pieces of one word; [unk_token] if none fits somewhere or the word is too long."""
        if len(word) > self.max_input_chars_per_word:
            return [self.unk_token]
        pieces, start, prefix = [], 0, ""
        while start < len(word):
            piece = prefix + word[start : start + self._longest]
            while piece not in self.vocab:
                piece = piece[:-1]
                if piece == prefix:
                    return [self.unk_token]
            pieces.append(piece)
            start, prefix = start + len(piece) - len(prefix), "##"
        return pieces


class WordMemo(dict):
    """Map a chunk of text without spaces to its ids: `function(chunk) -> ids`, called once for most chunks.

    Keeps MEMO_WORDS chunks, the first that come (the frequent ones come early), and asks `function` for the others.
    """

    def __init__(self, function):
        super().__init__()
        self.function = function

    def __missing__(self, chunk):
        ids = tuple(self.function(chunk))
        if len(self) < MEMO_WORDS and len(chunk) <= MEMO_CHARS:
            self[chunk] = ids
        return ids


class BatchEncoding(dict):
    """Tokenized text: a dict with the keys input_ids, token_type_ids, attention_mask that are attributes as well."""

    def __getattr__(self, name):
        if name not in self:
            raise AttributeError(f"no {name!r} among {', '.join(self)}")
        return self[name]

    def to(self, device, non_blocking=False):
        """Move the tensors to `device` and return self."""
        for key, value in self.items():
            self[key] = value.to(device, non_blocking=non_blocking) if torch.is_tensor(value) else value
        return self


class BertTokenizer:
    """Turn text into BERT's input: `[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]`, token type 1 from b on.

    `vocab_file` holds one token a line; UserError if it is no such file or lacks a special token. A special token
    that stands in a text, like "[MASK]", is that token.
    """

    def __init__(self, vocab_file, do_lower_case=True, *, unk_token="[UNK]", sep_token="[SEP]", pad_token="[PAD]",
                 cls_token="[CLS]", mask_token="[MASK]", tokenize_chinese_chars=True, strip_accents=None,
                 model_max_length=512):
        self.vocab = load_vocab(vocab_file)
        self.ids_to_tokens = list(self.vocab)
        self.do_lower_case, self.tokenize_chinese_chars = do_lower_case, tokenize_chinese_chars
        self.strip_accents, self.model_max_length = strip_accents, model_max_length
        special = self.all_special_tokens = [unk_token, sep_token, pad_token, cls_token, mask_token]
        self.unk_token, self.sep_token, self.pad_token, self.cls_token, self.mask_token = special
        if missing := [token for token in special if token not in self.vocab]:
            raise UserError(f"{vocab_file}: none of lines 1 to {len(self)} is {' or '.join(missing)}; {EXPECTED}")
        ids = self.all_special_ids = [self.vocab[token] for token in special]
        self.unk_token_id, self.sep_token_id, self.pad_token_id, self.cls_token_id, self.mask_token_id = ids
        self.basic_tokenizer = BasicTokenizer(do_lower_case, None, tokenize_chinese_chars, strip_accents)
        self.wordpiece_tokenizer = WordpieceTokenizer(self.vocab, unk_token)
        self._special = re.compile(f"({'|'.join(map(re.escape, sorted(special, key=len, reverse=True)))})")
        self._memo = WordMemo(self._chunk_ids)

    @classmethod
    def from_pretrained(cls, name_or_path, **options):
        """Return the tokenizer of "minilm", a hub id like "bert-base-uncased", a folder, a vocabulary or weights file.

        Settings come from a tokenizer_config.json beside the vocabulary; without one, names with "-cased" keep capital
        letters. `options` are the constructor's, which go first, and those of `utils.pretrained_file` (cache_dir=,
        local_files_only=, ...). Raises UserError if the vocabulary cannot be had, is damaged, or has more tokens than
        the embedding of a config.json beside it.
        """
        download = {key: options.pop(key) for key in pretrained_file.__kwdefaults__ if key in options}
        path = Path(name_or_path)
        beside_weights = path.is_file() and path.suffix in (".safetensors", ".bin")
        vocab_file = pretrained_file(path.parent if beside_weights else name_or_path, (VOCAB_NAME,), **download)
        settings = {"do_lower_case": "-cased" not in str(name_or_path)}
        config_file = Path(vocab_file).with_name(TOKENIZER_CONFIG_NAME)
        if config_file.is_file():
            settings |= read_settings(config_file)
        tokenizer = cls(vocab_file, **(settings | options))
        model_file = config_file.with_name(CONFIG_NAME)
        rows = read_json(model_file).get("vocab_size") if model_file.is_file() else None
        if isinstance(rows, int) and len(tokenizer) > rows:
            raise UserError(f"{vocab_file} has {len(tokenizer):,} tokens and {model_file} a vocab_size of {rows:,}: "
                            "the last ids would have no embedding; fetch both from one model")
        return tokenizer

    def save_pretrained(self, directory):
        """Write vocab.txt and tokenizer_config.json, which transformers reads, and return their paths."""
        vocab_file, config_file = Path(directory, VOCAB_NAME), Path(directory, TOKENIZER_CONFIG_NAME)
        config = {"tokenizer_class": "BertTokenizer"} | {key: getattr(self, key) for key in sorted(SETTINGS)}
        with atomic_write(vocab_file) as file:
            file.writelines(f"{token}\n" for token in self.vocab)
        with atomic_write(config_file) as file:
            json.dump(config, file, indent=2)
        return str(vocab_file), str(config_file)

    def __len__(self):
        return len(self.vocab)

    @property
    def vocab_size(self):
        """Number of tokens, special ones included."""
        return len(self.vocab)

    def __call__(self, text, text_pair=None, add_special_tokens=True, padding=False, truncation=None, max_length=None,
                 return_tensors=None):
        """Return the BatchEncoding of a text or a list of texts, each alone or with its `text_pair`.

        padding: False, True or "longest" (to the longest of the batch), "max_length".
        truncation: True or "longest_first" cuts to `max_length` (default: `model_max_length`), pairs from the longer
        text; False does not; None, the default, cuts if `max_length` is given and `padding` is not.
        return_tensors: None for lists (of lists, for a list of texts), "pt" for LongTensors (B, T).
        A `max_length` without room for the special tokens cuts nothing. Raises TypeError for what is no text,
        ValueError for other options and for a tensor of rows that differ in length.
        """
        if truncation is None:
            truncation = max_length is not None and padding is False
        for name, value in (("padding", padding), ("truncation", truncation), ("return_tensors", return_tensors)):
            if value not in CHOICES[name]:
                raise ValueError(f"{name}={value!r}: choose one of {CHOICES[name]}")
        max_length = self.model_max_length if max_length is None else max_length
        limit = max_length if truncation in (True, "longest_first") else None

        rows = [self._row(first, second, add_special_tokens, limit) for first, second in _pairs(text, text_pair)]
        input_ids, token_type_ids = [ids for ids, _ in rows], [types for _, types in rows]
        attention_mask = [[1] * len(ids) for ids in input_ids]
        if padding not in (False, "do_not_pad"):
            width = max_length if padding == "max_length" else max(map(len, input_ids), default=0)
            for ids, types, mask in zip(input_ids, token_type_ids, attention_mask):
                missing = width - len(ids)
                ids += [self.pad_token_id] * missing
                types += [0] * missing
                mask += [0] * missing
        encoding = {"input_ids": input_ids, "token_type_ids": token_type_ids, "attention_mask": attention_mask}
        if return_tensors == "pt":
            if len(set(map(len, input_ids))) > 1:
                raise ValueError("texts of different lengths make no tensor: pass padding=True (and truncation=True)")
            return BatchEncoding({key: torch.tensor(value, dtype=torch.long) for key, value in encoding.items()})
        return BatchEncoding({key: value[0] for key, value in encoding.items()} if isinstance(text, str) else encoding)

    def encode(self, text, text_pair=None, **options):
        """Return the input ids alone; `options` as for calling the tokenizer."""
        return self(text, text_pair, **options)["input_ids"]

    def batch_encode_plus(self, texts_or_pairs, **options):
        """Return the BatchEncoding of a list of texts or of (text, text) pairs; `options` as for calling."""
        return self(list(texts_or_pairs), **options)

    def tokenize(self, text):
        """Return the pieces of `text` as strings, without [CLS] and [SEP]."""
        return [self.ids_to_tokens[i] for i in self._text_ids(text)]

    def convert_tokens_to_ids(self, tokens):
        """Return the id of a token or the ids of a list of tokens; unknown ones have that of [UNK]."""
        if isinstance(tokens, str):
            return self.vocab.get(tokens, self.unk_token_id)
        return [self.vocab.get(token, self.unk_token_id) for token in tokens]

    def convert_ids_to_tokens(self, ids, skip_special_tokens=False):
        """Return the token of an id or the tokens of a list or tensor of ids; None for ids beyond the vocabulary."""
        if isinstance(ids, int):
            return self.ids_to_tokens[ids] if 0 <= ids < len(self) else None
        skipped = self.all_special_ids if skip_special_tokens else ()
        return [self.convert_ids_to_tokens(int(i)) for i in ids if int(i) not in skipped]

    def decode(self, token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False):
        """Return the text of a list or tensor of ids: pieces joined, no space before ". ? ! ,".

        With `clean_up_tokenization_spaces` there is none around apostrophes either. Lower case and lost accents stay.
        """
        token_ids = token_ids.tolist() if torch.is_tensor(token_ids) else token_ids
        token_ids = [token_ids] if isinstance(token_ids, int) else token_ids
        tokens = [token for token in self.convert_ids_to_tokens(token_ids, skip_special_tokens) if token is not None]
        text = "".join(tokens[:1]) + "".join(
            _clean_up(token[2:] if token.startswith("##") else f" {token}") for token in tokens[1:]
        )
        return _clean_up(text) if clean_up_tokenization_spaces else text

    def batch_decode(self, sequences, **options):
        """Return the texts of a list of lists or a tensor (B, T) of ids; `options` as for `decode`."""
        return [self.decode(token_ids, **options) for token_ids in sequences]

    def _row(self, first, second, add_special_tokens, limit):
        """Return the ids and token types of a text or (if `second` is not None) a pair, at most `limit` of them."""
        cls, sep = ([self.cls_token_id], [self.sep_token_id]) if add_special_tokens else ([], [])
        ids1, ids2 = self._text_ids(first), [] if second is None else self._text_ids(second)
        sep2 = [] if second is None else sep
        budget = -1 if limit is None else limit - len(cls + sep + sep2)
        if budget >= 0:
            length1, length2 = longest_first(len(ids1), len(ids2), budget)
            ids1, ids2 = ids1[:length1], ids2[:length2]
        ids1, ids2 = cls + ids1 + sep, ids2 + sep2
        return ids1 + ids2, [0] * len(ids1) + [1] * len(ids2)

    def _text_ids(self, text):
        """Return the ids of a text without [CLS] and [SEP]."""
        if not isinstance(text, str):
            raise TypeError(f"expected a text, got {type(text).__name__}: {text!r}")
        ids = []
        if self._special.search(text):
            for number, part in enumerate(self._special.split(text)):  # odd parts are the special tokens
                ids += [self.vocab[part]] if number % 2 else self._text_ids(part)
        else:
            for chunk in self.basic_tokenizer.clean(text).split():
                ids += self._memo[chunk]
        return ids

    def _chunk_ids(self, chunk):
        """Return the ids of a chunk of cleaned text without spaces."""
        words = self.basic_tokenizer.fold(chunk)
        return [self.vocab[piece] for word in words for piece in self.wordpiece_tokenizer.cut(word)]


def _pairs(text, text_pair):
    """Return the (text, its pair or None) of the rows that `BertTokenizer.__call__` is asked for."""
    if isinstance(text, str):
        return [(text, text_pair or None)]  # "" beside a single text is no text for the oracle
    if text_pair is None:
        return [row if isinstance(row, (tuple, list)) and len(row) == 2 else (row, None) for row in text]
    if isinstance(text_pair, str) or len(text) != len(text_pair):
        raise ValueError("a list of texts needs a list of as many second texts")
    return zip(text, text_pair)


def _clean_up(text):
    """Return `text` without the spaces that tokenizing put around punctuation."""
    for apart, joined in CLEAN_UP.items():
        text = text.replace(apart, joined)
    return text


@lru_cache(maxsize=4)
def load_tokenizer(pretrained, cache_dir):
    """Return the tokenizer of `pretrained`, one for all data sets."""
    return BertTokenizer.from_pretrained(pretrained, cache_dir=cache_dir)
