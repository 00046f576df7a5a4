"""Files that are written whole or not at all, and places that can be written."""

import errno
import os
import secrets
from contextlib import contextmanager, suppress
from pathlib import Path

from files.errors import UserError, remedy


@contextmanager
def atomic_write(path, mode="w"):
    """Open a file that replaces `path` when the block ends and leaves it untouched when the block raises.

    Parent folders are made. Text is UTF-8 with "\\n" line ends on every system. An OSError names `path`.
    """
    path = followed(path)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    if is_device(path) or path.is_dir():  # nothing to replace (a folder raises here)
        with named(path), open(path, mode, **text) as file:
            yield file
        return
    temporary = beside(path)
    try:
        with named(path, temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, mode.replace("w", "x"), **text) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def followed(path):
    """Return the path that a link leads to, so that the link stays; a device's own, as /dev/stdout may lead nowhere."""
    return Path(path if is_device(path) else os.path.realpath(path))


def is_device(path):
    """Tell whether `path` is neither a file nor a folder, but there: /dev/null, /dev/full, a pipe."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def beside(path):
    """Return a new name in the folder of `path`, for a file that will take its place."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


@contextmanager
def named(path, temporary=None):
    """Let an OSError of the system name `path`, where it names no file (a write that fails) or `temporary`."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename, error.filename2 = str(path), None
        raise


def sync_folder(path):
    """Wait until the names in a folder are on the disk, where the system can tell."""
    if os.name == "posix":
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def alone_in(folder):
    """Wait until no other process is in this block for the same folder, made if absent, where the system can tell."""
    os.makedirs(folder, exist_ok=True)
    if os.name != "posix":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # not every file system has locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # and with it the lock


def existing_folder(path):
    """Return the nearest folder above `path` that is there, or the file that stands in its place."""
    parent = Path(os.path.realpath(path)).parent
    while not parent.exists():
        parent = parent.parent
    return parent


def unwritable(paths):
    """Return why files cannot be written, a line for each folder; found out by trying, which leaves nothing there."""
    problems = {}  # (folder, what is wrong there) -> paths
    for path in paths:
        try:
            try_to_write(followed(path))
        except OSError as error:
            why = f"cannot be written ({error.strerror}): {remedy(error)}"
            problems.setdefault((os.path.dirname(path), why), []).append(path)
    return [f"{', '.join(map(str, paths))} {why}" for (_, why), paths in problems.items()]


def try_to_write(path):
    """Write a byte in the nearest folder above `path` that is there, under a name of its own; raises OSError."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if path.is_fifo():  # it waits for its reader
        return
    device = is_device(path)
    trial = path if device else existing_folder(path) / beside(path).name
    try:
        with open(trial, "wb") as file:
            file.write(b"\0")
    finally:
        if not device:
            trial.unlink(missing_ok=True)


def require_writable(paths):
    """Raise UserError, naming them all, when some of the files cannot be written."""
    problems = unwritable(paths)
    if problems:
        raise UserError("; ".join(problems))
