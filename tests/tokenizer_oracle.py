"""transformers.BertTokenizer in a process of its own, outside the project's folder, that answers requests by pipe."""

import functools
import json
import os
import subprocess
import sys
import tempfile

from utils import pretrained_file

VOCAB = pretrained_file("minilm", ("vocab.txt",))
# Reads one JSON request a line and answers with a line of JSON.
ORACLE = """
import functools, json, sys
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import AutoTokenizer, BertTokenizer

@functools.cache
def tokenizer(how):
    how = json.loads(how)
    return AutoTokenizer.from_pretrained(how) if isinstance(how, str) else BertTokenizer(model_max_length=512, **how)

def category(char):
    clean = BertNormalizer(lowercase=False, strip_accents=False).normalize_str(f"a{char}b")
    words = len(BertPreTokenizer().pre_tokenize_str(clean))
    if clean == "ab" or words > 1:
        return "drop" if clean == "ab" else "space" if words == 2 else "apart"
    stripped = BertNormalizer(lowercase=False, strip_accents=True).normalize_str(f"a{char}b")
    return "accent" if stripped == "ab" else "letter"

for line in sys.stdin:
    request = json.loads(line)
    if "code_points" in request:
        answers = [category(chr(code_point)) for code_point in request["code_points"]]
    else:
        method = getattr(tokenizer(json.dumps(request["how"])), request["method"])
        answers = [method(*arguments, **options) for arguments, options in request["calls"]]
    print(json.dumps([dict(answer) if hasattr(answer, "keys") else answer for answer in answers]), flush=True)
"""


@functools.cache
def oracle():
    """Start the oracle; it ends when this process does, because its standard input ends then."""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(  # -I: neither the current folder nor PYTHONPATH is searched for modules
        [sys.executable, "-I", "-c", ORACLE], cwd=tempfile.gettempdir(), env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )


def ask(**request):
    """Send the oracle a request and return its answers."""
    print(json.dumps(request), file=oracle().stdin, flush=True)
    return json.loads(oracle().stdout.readline())


def categories(code_points):
    """What the oracle does to each character: drop, space, apart (ideograph, punctuation), accent or letter."""
    return ask(code_points=code_points)


def assert_same(tokenizer, calls, method="__call__", folder=None, **settings):
    """`tokenizer` answers every (arguments, options) of `calls` as the oracle with these settings or from `folder`."""
    answers = ask(how=folder or {"vocab": VOCAB, **settings}, method=method, calls=calls)
    for (arguments, options), theirs in zip(calls, answers, strict=True):
        assert (arguments, options, getattr(tokenizer, method)(*arguments, **options)) == (arguments, options, theirs)
