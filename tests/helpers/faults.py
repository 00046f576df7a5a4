"""Make the file system fail on purpose, for root as for anyone: EACCES, ENOSPC, EIO for the paths that match.

    from tests.helpers.faults import failing

    with failing("write", errno.ENOSPC, "*/best.pt*") as struck:  # its temporary, .best.pt.1234.tmp, included
        with pytest.raises(UserError, match="best.pt cannot be written"):
            save_model(model, optimizer, args, config, tmp_path / "best.pt")
    assert len(struck) == 1

What can fail: open, read, write, fsync, replace, makedirs, remove. As from the system itself, the error names the file
where a path was given (open, replace, makedirs, remove) and does not where a descriptor was (read, write, fsync), and
what was written fails when the buffer is full, flushed or closed. `call=2` lets only the second call fail. A block in
which nothing failed is an AssertionError: it would show nothing. In another process: `failing(...).__enter__()`.
Out of reach is what opens files from C++ or Rust by their name: safetensors, torch given a name to save to.
"""

import builtins
import errno
import fnmatch
import io
import os
from contextlib import ExitStack, contextmanager
from unittest import mock

import pytest

from files.errors import run_script

KINDS = (errno.EACCES, errno.ENOSPC, errno.EIO)
# The steps of writing a file: what fails, at which call, its name. Buffers are full, and half of a file there, at the
# second write.
STEPS = [("open", None, "opening"), ("write", None, "the first write"), ("write", 2, "a later write"),
         ("fsync", 1, "fsync"), ("replace", None, "the rename")]
# what fails -> the functions of os that do it
FUNCTIONS = {"open": ("open",), "read": (), "write": (), "fsync": ("fsync", "fdatasync"),
             "replace": ("replace", "rename"), "makedirs": ("mkdir",), "remove": ("unlink", "remove")}
REAL_OPEN = io.open


def path_of(file):
    """Return the absolute path of a path, or of an open descriptor where the system tells it."""
    if not isinstance(file, int):
        return os.path.abspath(os.fsdecode(file))
    if hasattr(os, "readlink") and os.path.exists("/proc/self/fd"):
        return os.readlink(f"/proc/self/fd/{file}")
    import fcntl

    return os.fsdecode(fcntl.fcntl(file, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0"))  # macOS


@contextmanager
def failing(what, number, match, call=None):
    """Let `what` raise OSError(number) for paths that the pattern `match` fits, or only the call-th of them.

    Gives the list of the paths that it failed for.
    """
    calls, struck = [], []

    def strike(*files, named=True):
        """Raise when one of the files matches and it is its turn."""
        paths = [path_of(file) for file in files]
        if not any(fnmatch.fnmatch(path, match) for path in paths):
            return
        calls.append(paths)
        if call in (None, len(calls)):
            struck.append(paths[-1])
            names = [os.fspath(file) for file in files] if named else [None]
            raise OSError(number, os.strerror(number), names[0], None, *names[1:])

    class File(io.FileIO):
        """A file of which each read or write asks first."""

        def write(self, data):
            if what == "write":
                strike(self.name, named=False)
            return super().write(data)

        def readinto(self, buffer):
            if what == "read":
                strike(self.name, named=False)
            return super().readinto(buffer)

        def readall(self):
            if what == "read":
                strike(self.name, named=False)
            return super().readall()

    def open_file(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
        if isinstance(file, int) or not fnmatch.fnmatch(path_of(file), match):
            return REAL_OPEN(file, mode, buffering, encoding, errors, newline, closefd, opener)
        if what == "open":
            strike(file)
        raw = File(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        if buffering == 0:
            return raw
        kind = io.BufferedRandom if "+" in mode else io.BufferedReader if raw.readable() else io.BufferedWriter
        buffer = kind(raw)
        return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding, errors, newline)

    def failing_function(real):
        def function(file, *more, **options):
            strike(file, *(more[:1] if what == "replace" else ()), named=what != "fsync")
            return real(file, *more, **options)
        return function

    with ExitStack() as patches:
        for name in FUNCTIONS[what]:
            if hasattr(os, name):
                patches.enter_context(mock.patch.object(os, name, failing_function(getattr(os, name))))
        for module in (builtins, io):
            patches.enter_context(mock.patch.object(module, "open", open_file))
        yield struck
    assert struck, f"{what} never failed for {match}: nothing was shown"


def refused(action, capsys):
    """Run `action` as a script; return the one line with which it ends, exit code 2 checked."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run_script(action)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1, said
    return said.removeprefix("error: ").strip()


def contents(folder):
    """Return {name: bytes} of all files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
