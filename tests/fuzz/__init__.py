"""Fuzzing with hypothesis, the same examples at every run.

    MINBERT_FUZZ_EXAMPLES=20 pytest tests/fuzz        # twenty times as many

    n = fuzz(check, 200, st.text(), st.integers())    # check(text, integer) fails by raising
    record("Fuzzing", "spec strings", "a technique or a ValueError", f"{n} examples")
"""

import os

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

FACTOR = float(os.environ.get("MINBERT_FUZZ_EXAMPLES", "1"))


def fuzz(check, examples, *strategies):
    """Call `check` with what `strategies` draw, `examples` times or as often as they have something new.

    Returns how often it was called. A failure is made as small as it can be and raised.
    """
    calls = 0

    @seed(check.__name__)
    @settings(max_examples=max(1, round(examples * FACTOR)), deadline=None, database=None, print_blob=False,
              suppress_health_check=list(HealthCheck))
    @given(st.tuples(*strategies))
    def run(drawn):
        nonlocal calls
        calls += 1
        check(*drawn)

    run()
    return calls


@st.composite
def damaged(draw, data, times=4):
    """Draw `data`, bytes, after one to `times` changes: flipped, overwritten, dropped, repeated, inserted, cut off."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, times))):
        start = draw(st.integers(0, max(len(data) - 1, 0)))
        end = min(len(data), start + draw(st.sampled_from((1, 2, 4, 8, 64, 1024))))
        kind = draw(st.sampled_from(("flip", "overwrite", "drop", "repeat", "insert", "cut")))
        if kind == "flip" and data:
            data[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == "overwrite":
            data[start:end] = bytes([draw(st.sampled_from((0, 1, 0x7F, 0x80, 0xFF)))]) * (end - start)
        elif kind == "drop":
            del data[start:end]
        elif kind == "repeat":
            data[start:start] = data[start:end]
        elif kind == "insert":
            data[start:start] = draw(st.binary(min_size=1, max_size=16))
        elif kind == "cut":
            del data[start:]
    return bytes(data)
