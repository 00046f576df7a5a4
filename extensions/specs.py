"""What a spec `NAME[:KEY=VALUE,...]` on the command line names."""

import inspect
import math
from functools import partial

from files.errors import nearest


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


def from_spec(spec, table):
    """Return the technique that `NAME[:KEY=VALUE,...]` names in `table`, with its options bound.

    Raises ValueError naming what would be valid, and what is nearest, for an unknown name or key, a key that is there
    twice, and a value of another kind than the default: a number must be finite, and must not be below 0. A technique's
    `bounds`, {key: (least, most)}, tell what else its numbers must be; nothing else looks at them.
    """
    name, _, options = spec.partition(":")
    if name not in table:
        raise ValueError(f"{spec!r}: no {name!r}; choose one of {', '.join(table)}{nearest(name, table)}")
    parameters = inspect.signature(table[name]).parameters.values()
    # These have flags of their own.
    defaults = {p.name: p.default for p in parameters
                if p.default is not p.empty and p.name not in ("weight_decay", "seed", "epochs")}
    valid = ", ".join(f"{key} (default {default})" for key, default in defaults.items()) or "no options"
    values = {}
    for option in filter(None, options.split(",")):
        key, _, text = option.partition("=")
        if key not in defaults or key in values:
            again = " once" if key in values else ""
            raise ValueError(f"{spec!r}: {name} takes {valid}{again}{nearest(key, set(defaults) - set(values))}")
        value, kind = parse_value(text), type(defaults[key])
        if kind is str and isinstance(value, float):
            value = text  # inf is a word there, as of a norm, and a list of rates may have one
        if text == "" or not (type(value) is kind or (kind, type(value)) == (float, int)):
            raise ValueError(f"{spec!r}: {name} takes {valid}, and {text!r} is no value of that kind")
        if kind in (int, float) and not 0 <= value < math.inf:
            raise ValueError(f"{spec!r}: {key} must be a finite number of at least 0")
        least, most = getattr(table[name], "bounds", {}).get(key, (value, value))
        if not least <= value <= most:
            raise ValueError(f"{spec!r}: {key} must be " + (
                f"from {least} to {most}" if most < math.inf else f"at least {least}"))
        values[key] = value
    return partial(table[name], **values)


def require_effect(spec, table):
    """Raise ValueError for a spec that `from_spec` refuses, and for one of which a part does nothing.

    A technique's `only_with`, {key: "OTHER=VALUE" or "OTHER"}, tells which keys mean nothing unless another has that
    value, or any but none and 0. This is for what a user writes: the specs of a checkpoint are taken as they are.
    """
    technique = from_spec(spec, table)
    options = {name: p.default for name, p in inspect.signature(technique).parameters.items()}  # those bound included
    defaults = inspect.signature(technique.func).parameters
    for key, other in getattr(technique.func, "only_with", {}).items():
        needed, _, text = other.partition("=")
        idle = options[needed] != parse_value(text) if text else options[needed] in ("none", 0)
        if idle and options[key] != defaults[key].default:
            raise ValueError(f"{spec!r}: {key} does nothing without {other}")


def made(spec, table, *args):
    """Return the technique that `spec` names: of a class an object, made with `args`; of a function, itself."""
    technique = from_spec(spec, table)
    return technique(*args) if inspect.isclass(technique.func) else technique
