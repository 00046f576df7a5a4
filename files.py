"""How a script ends when its user made a mistake, and files that are written whole or not at all."""

import os
import secrets
import sys
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """A mistake or lack that the user can mend: one message that says what, where and what to do."""


class Interrupted(Exception):
    """A signal asked the script to end, and everything is saved; `code` is 128 plus the signal's number."""

    def __init__(self, message, signum):
        super().__init__(message)
        self.code = 128 + signum


def run_script(main):
    """Call `main()`; a `UserError` ends the script with its message and exit code 2, Ctrl-C with 130."""
    try:
        return main()
    except Interrupted as interruption:
        print(interruption, file=sys.stderr)
        sys.exit(interruption.code)
    except (UserError, OSError) as error:  # an OSError names its file: a full disk, a folder that may not be written
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


@contextmanager
def atomic_write(path, mode="w"):
    """Open a file that replaces `path` when the block ends and leaves it untouched when the block raises.

    Parent folders are made. Text is UTF-8 with "\\n" line ends on every system.
    """
    path = Path(os.path.realpath(path))  # a link stays a link
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    if path.exists() and not path.is_file():  # /dev/null, a pipe: nothing to replace (a folder raises here)
        with open(path, mode, **text) as file:
            yield file
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, mode.replace("w", "x"), **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(path):
    """Wait until the names in a folder are on the disk, where the system can tell."""
    if os.name == "posix":
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
