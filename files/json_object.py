"""A JSON object from a file."""

import json
from reprlib import repr as shortened

from files.errors import UserError
from files.writing import named

MAX_JSON_BYTES = 2**22  # of a config.json and its like, which have some hundred


def read_json(path, advice="fetch it again"):
    """Return the JSON object in a file; raise UserError when there is something else or more than MAX_JSON_BYTES."""
    with named(path), open(path, "rb") as file:
        content = file.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise UserError(f"{path} has more than {MAX_JSON_BYTES:,} bytes, which no such file needs; {advice}")
    try:
        found = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_unique)
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply to be read; {advice}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); {advice}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold one JSON object, not {type(found).__name__}; {advice}")
    return found


def _unique(pairs):
    """Return a JSON object as a dict; raise ValueError when a key stands there twice: which one would count?"""
    found = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shortened(key)} stands there twice")
        found[key] = value
    return found
