"""What a spec `NAME[:KEY=VALUE,...]` on the command line names."""

import difflib
import inspect
import math
import re
from functools import partial

from extensions.technique import WITH_FLAGS

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
# What people look for among techniques and options, and which flag it is here.
FLAGS = {"ema": "--ema 0.995", "swa": "--ema 0.995", "learning_rate": "--lr", "lr": "--lr",
         **{name: f"--{name}" for name in WITH_FLAGS}}


def parse_value(text):
    """Return the number, boolean or bare word that a value of a spec spells."""
    if text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text


def name_of(spec):
    """Return the name in a spec."""
    return spec.partition(":")[0]


def quoted(spec):
    """Return a spec as an error shows it: as it is, or in quotes where it has unusual characters."""
    return spec if re.fullmatch(r"[\w.:=,+-]+", spec, re.ASCII) else repr(spec)


def meant(word, words, likely):
    """Return "; did you mean ...?" with what is like `word` in letters or, by `likely`, in meaning; ";" for nothing."""
    def letters(text):
        return re.sub(r"[^a-z0-9]", "", text.lower())

    known = {letters(text): word for text, word in ({**FLAGS, **likely} | {word: word for word in words}).items()}
    near = [letters(word)] if letters(word) in known else difflib.get_close_matches(letters(word), known, n=2)
    return f"; did you mean {' or '.join(dict.fromkeys(known[text] for text in near))}?" if near else ";"


def technique_of(spec, table):
    """Return the record of the technique that a spec names in `table`. Raises ValueError for an unknown name."""
    name = name_of(spec)
    if name not in table:
        also = {other: key for key, technique in table.items() for other in technique.aka}
        raise ValueError(f"{quoted(spec)}: no {name!r}{meant(name, table, also)} choose one of {', '.join(table)}")
    return table[name]


def problem(technique, key, text, default):
    """Return (the value of an option as written, what is wrong with it or None)."""
    value, kind = parse_value(text), type(default)
    if kind is str and isinstance(value, float):
        value = text  # inf is a word there, as of a norm
    valid = technique.valid.get(key)
    if text == "" or not (type(value) is kind or (kind, type(value)) == (float, int)):
        return value, f"must be {valid if valid and kind is str else KINDS[kind]}, not {text!r}"
    if kind in (int, float) and not 0 <= value < math.inf:
        return value, "must be a finite number of at least 0"
    return value, None if valid is None or value in valid else f"must be {valid}"


def options_of(spec, table):
    """Return the options of a spec, {key: value}, as far as they are written there.

    Raises ValueError naming what would be valid, and what is probably meant, for an unknown name or key, a key that is
    there twice, a value of another kind than the default or that the technique refuses, and values that contradict each
    other.
    """
    technique, options = technique_of(spec, table), {}
    defaults = technique.defaults()
    for option in filter(None, spec.partition(":")[2].split(",")):
        key, _, text = option.partition("=")
        if key in options:
            raise ValueError(f"{quoted(spec)}: {key} is there twice")
        if key not in defaults:
            takes = ", ".join(f"{key} (default {default})" for key, default in defaults.items()) or "no options"
            raise ValueError(f"{quoted(spec)}: no option {key!r}{meant(key, defaults, technique.likely)} "
                             f"{name_of(spec)} takes {takes}")
        options[key], wrong = problem(technique, key, text, defaults[key])
        if wrong:
            raise ValueError(f"{quoted(spec)}: {key} {wrong}")
    if technique.check:
        with_spec(spec, technique.check, **{**defaults, **options})
    return options


def complete_options(spec, table):
    """Return {option: value} of all options of the technique that a spec names, those that it leaves out by default."""
    return {**technique_of(spec, table).defaults(), **options_of(spec, table)}


def with_spec(spec, check, *args, **options):
    """Carry out a technique's check; its ValueError gets the spec as a prefix."""
    try:
        check(*args, **options)
    except ValueError as error:
        raise ValueError(f"{quoted(spec)}: {error}") from error


def from_spec(spec, table):
    """Return what is behind the technique that a spec names in `table`, with its options bound; see `options_of`."""
    return partial(technique_of(spec, table).make, **options_of(spec, table))


def build(spec, table, *args):
    """Return the technique that `spec` names: of a class an object, made with `args`; of a function, itself."""
    technique = from_spec(spec, table)
    return technique(*args) if inspect.isclass(technique.func) else technique


def require_effect(spec, table):
    """Raise ValueError for a spec that `options_of` refuses, and for one of which a part does nothing.

    This is for what a user writes: the specs of a checkpoint are taken as they are.
    """
    technique, options = technique_of(spec, table), complete_options(spec, table)
    for key, other in technique.only_with.items():
        needed, _, text = other.partition("=")
        idle = options[needed] != parse_value(text) if text else options[needed] in ("none", 0)
        if idle and options[key] != technique.defaults()[key]:
            raise ValueError(f"{quoted(spec)}: {key} does nothing without {other}")


def require_run(spec, table, tasks, epochs):
    """Raise ValueError where the technique that `spec` names cannot serve a run of these tasks, names, and epochs."""
    technique = technique_of(spec, table)
    if technique.check_run:
        with_spec(spec, technique.check_run, tasks, epochs, **complete_options(spec, table))
