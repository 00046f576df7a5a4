"""The answers of transformers.BertTokenizer and of the Rust normalizer behind it, from the oracle's process."""

import json

from files.pretrained import pretrained_file
from tests.helpers.oracle import run_oracle

VOCAB = pretrained_file("minilm", ("vocab.txt",))
# Requests and answers are many small lists, which JSON carries faster than a tensor file does.
ANSWERS = """
import json
from transformers import AutoTokenizer, BertTokenizer

request = json.loads(request)
name = json.dumps(request["how"])
if name not in memo:
    how = request["how"]
    memo[name] = (AutoTokenizer.from_pretrained(how) if isinstance(how, str)
                  else BertTokenizer(model_max_length=512, **how))
method = getattr(memo[name], request["method"])
answers = [method(*arguments, **options) for arguments, options in request["calls"]]
result = json.dumps([dict(answer) if hasattr(answer, "keys") else answer for answer in answers])
"""
CATEGORIES = """
import json
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

clean, strip = (BertNormalizer(lowercase=False, strip_accents=accents) for accents in (False, True))

def category(text):
    cleaned = clean.normalize_str(text)
    words = len(BertPreTokenizer().pre_tokenize_str(cleaned))
    if cleaned == "ab" or words > 1:
        return "drop" if cleaned == "ab" else "space" if words == 2 else "apart"
    return "accent" if strip.normalize_str(text) == "ab" else "letter"

result = json.dumps([category(f"a{chr(code_point)}b") for code_point in json.loads(code_points)])
"""


def ask(how, method, calls):
    """Return what `method` of a tokenizer answers to each (arguments, options) of `calls`.

    `how` is a folder that the tokenizer is loaded from, or a dict of its constructor's keywords.
    """
    return json.loads(run_oracle(ANSWERS, request=json.dumps({"how": how, "method": method, "calls": calls})))


def categories(code_points):
    """What the oracle does to each character: drop, space, apart (ideograph, punctuation), accent or letter."""
    return json.loads(run_oracle(CATEGORIES, code_points=json.dumps(code_points)))


def assert_same(tokenizer, calls, method="__call__", folder=None, **settings):
    """`tokenizer` answers every (arguments, options) of `calls` as the oracle with these settings or from `folder`."""
    answers = ask(folder or {"vocab": VOCAB, **settings}, method, calls)
    for (arguments, options), theirs in zip(calls, answers, strict=True):
        assert (arguments, options, getattr(tokenizer, method)(*arguments, **options)) == (arguments, options, theirs)
