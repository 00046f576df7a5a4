"""Fuzzed specs and flags: each is understood or refused in the parser's own words, and what is written is read back."""

import argparse
import contextlib
import io
import shlex

import pytest
from hypothesis import strategies as st

from engine.choices import batch_sizes, losses_by_task, specs_by_task
from engine.parser import ArgumentParser, number, spec_of
from extensions import (
    ADAPT,
    GRADIENTS,
    HEADS,
    PARAMETER_GROUPS,
    PENALTIES,
    POOLING,
    SCHEDULES,
    TASK_LOSSES,
    TASK_WEIGHTS,
)
from extensions.specs import from_spec, quoted
from extensions.technique import Technique, by_name
from files.errors import UserError
from multitask_classifier import get_parser
from tasks import COURSE_TASKS
from tests.fuzz import fuzz


def technique(model, lr, weight_decay=0.01, rank=8, scale=1.0, fast=False, layers="all"):
    """A function with an option of every type."""
    return {"rank": rank, "scale": scale, "fast": fast, "layers": layers}


TABLE = by_name(*(Technique(name, technique, does="nothing", use="never", paper="none")
                  for name in ("technique", "layer-wise")))
TABLES = (TABLE, PARAMETER_GROUPS, PENALTIES, SCHEDULES, GRADIENTS, TASK_WEIGHTS, TASK_LOSSES, ADAPT, HEADS)
NUMERALS = st.sampled_from(["", "0", "-1", "1_0", "\u0663", "\u00b2", "1e999", "nan", "inf", " 3", "3 ", "9" * 5000,
                            "0x1", "1e-400", "+", "-", "1.", ".5", "true", "True", "\ud800", "\0", "=", ",", ":"])
TEXT = st.one_of(NUMERALS, st.text(max_size=12))
NAMES = st.sampled_from(["technique", "layer-wise", "rank", "scale", "fast", "layers", "weight_decay", "model", "lr"])
SPECS = st.one_of(TEXT, st.lists(st.one_of(NAMES, TEXT, st.sampled_from(":=,"), st.sampled_from(":=,")),
                                 max_size=9).map("".join))
WORDS = st.from_regex(r"[a-z]{1,6}(-[0-9]{1,2})?", fullmatch=True).filter(lambda word: word not in (
    "true", "false", "nan", "inf", "infinity"))
OPTIONS = st.fixed_dictionaries({}, optional={
    "rank": st.integers(0, 10**30), "scale": st.floats(0, allow_nan=False, allow_infinity=False), "fast": st.booleans(),
    "layers": WORDS})


def test_specs(record):
    def check(spec):
        for table in TABLES:
            try:
                bound = from_spec(spec, table)
            except ValueError as error:
                assert str(error).startswith(quoted(spec)) and len(str(error)) < 40_000
            else:
                assert bound.func in [each.make for each in table.values()] and "weight_decay" not in bound.keywords
            with contextlib.suppress(argparse.ArgumentTypeError):
                assert spec_of(table, "none")(spec) == spec

    def round_trip(name, options):
        pairs = ",".join(f"{key}={str(value).lower() if isinstance(value, bool) else value}"
                         for key, value in options.items())
        bound = from_spec(f"{name}:{pairs}" if pairs else name, TABLE)
        assert bound(None, 0.1) == {"rank": 8, "scale": 1.0, "fast": False, "layers": "all", **options}
        assert all(type(bound.keywords[key]) is type(value) for key, value in options.items() if key != "scale")

    n, valid = fuzz(check, 400, SPECS), fuzz(round_trip, 150, st.sampled_from(sorted(TABLE)), OPTIONS)
    record("Fuzzing", "specs of techniques, NAME:KEY=VALUE,... with any text for a part",
           "the options that were written, or an error that quotes the spec",
           f"{n} examples, and {valid} valid ones read back")


def parse_pooling(specs):
    return specs_by_task("pooling", specs, POOLING, "cls", COURSE_TASKS)


def parse_losses(specs):
    return losses_by_task(specs, COURSE_TASKS)


def is_pooling(value):
    with contextlib.suppress(ValueError):
        return bool(from_spec(value, POOLING))


def are_losses(specs):
    with contextlib.suppress(ValueError):
        return bool(specs) and all(from_spec(spec, TASK_LOSSES) for spec in specs)


def test_lists_of_pairs(record):
    tasks, poolers = st.sampled_from(COURSE_TASKS), st.sampled_from(sorted(POOLING))
    pairs = st.tuples(st.one_of(tasks, st.sampled_from(["", "mnli", "SST"])), st.sampled_from(["=", "", "=="]),
                      st.one_of(poolers, TEXT, st.integers().map(str))).map("".join)

    def check(specs):
        for parse, fits in ((parse_pooling, is_pooling), (parse_losses, are_losses),
                            (batch_sizes, lambda value: type(value) is int and value > 0)):
            try:
                result = parse(specs)
            except UserError as error:
                assert str(error).startswith("--")
            else:
                assert set(result) <= set(COURSE_TASKS) and all(map(fits, result.values()))

    def round_trip(pooling, sizes):
        assert parse_pooling([f"{task}={name}" for task, name in pooling.items()]) == {
            **dict.fromkeys(COURSE_TASKS, "cls"), **pooling}
        assert batch_sizes([f"{task}={rows}" for task, rows in sizes.items()]) == sizes

    n = fuzz(check, 300, st.lists(pairs, max_size=4))
    valid = fuzz(round_trip, 100, st.dictionaries(tasks, poolers), st.dictionaries(tasks, st.integers(1, 999_999)))
    record("Fuzzing", "--pooling and --task_batch_size with any text",
           "a value for each task, or an error that names the flag", f"{n} examples, and {valid} valid ones read back")


def outcome(parser, argv):
    """Return {name: value}, or what was printed with exit code 2: by argparse, or of a UserError by run_script."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return parser.given(argv)
    except UserError as error:
        return f"error: {error}"
    except SystemExit as stop:
        assert stop.code == 2 or {"-h", "--help", "--help-all"} & set(argv)
        return said.getvalue()


@pytest.fixture(scope="module")
def parser():
    return get_parser()


def test_flags(parser, record):
    flags = st.sampled_from(sorted(option for action in parser._actions for option in action.option_strings))

    def check(argv):
        argv = [text.lstrip("@") for text in argv]
        result = outcome(parser, argv)
        assert isinstance(result, dict) or "error:" in result or "usage:" in result

    def check_number(text, kind, minimum):
        try:
            assert number(kind, minimum)(text) >= minimum
        except (ValueError, argparse.ArgumentTypeError):
            pass

    n = fuzz(check, 80, st.lists(st.one_of(flags, TEXT, st.sampled_from(["3", "0.5", "sst", "cls"])), max_size=6))
    n += fuzz(check_number, 200, TEXT, st.sampled_from([int, float]), st.sampled_from([0, 1, 1e-12]))
    record("Fuzzing", "command lines of known flags and any text", "arguments, or usage and exit code 2",
           f"{n} examples")


def test_files_of_flags(tmp_path, record):
    parser, path = ArgumentParser(), tmp_path / "a.args"
    parser.add_argument("--name", action="append")
    parser.add_argument("--count", type=int, action="append")

    def check(content):
        path.write_bytes(content)
        result = outcome(parser, [f"@{path}"])
        assert isinstance(result, dict) or "error:" in result or "usage:" in result, result

    def round_trip(names):
        path.write_text("".join(f"--name={shlex.quote(name)} # a comment\n\n" for name in names), encoding="utf-8")
        assert outcome(parser, [f"@{path}"]).get("name", []) == names

    lines = st.lists(st.one_of(st.sampled_from([b"--name", b"--count", b"=", b" ", b"\n", b"\r\n", b"'", b'"', b"\\",
                                               b"#", b"@", b"--", b"3"]), st.binary(max_size=6)), max_size=12)
    words = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp")), max_size=12)
    n, valid = fuzz(check, 200, lines.map(b"".join)), fuzz(round_trip, 100, st.lists(words, max_size=4))
    record("Fuzzing", "files of flags, @FILE, of any bytes", "arguments, or usage and exit code 2",
           f"{n} examples, and {valid} valid ones read back")
