"""How a script begins and ends: its parser, one clear message for a mistake of its user, exit codes."""

import argparse
import difflib
import errno
import os
import re
import sys
import time
import traceback
from contextlib import suppress

WAIT_FOR_THE_FIRST = 15  # seconds; torchrun looks after its processes ten times a second

# What to do about the errors of the system that a user can mend.
REMEDIES = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there, the quota is used up",
    errno.EFBIG: "files there may not be that large: raise the limit (`ulimit -f`), or name another place",
    errno.EACCES: "change its permissions, or name another place",
    errno.EPERM: "change its permissions, or name another place",
    errno.EROFS: "the disk may not be written, name another place",
    errno.EIO: "the disk or the way to it fails: try again, or name another place",
    errno.EISDIR: "it is a folder, name a file",
    errno.ENOTDIR: "what its path takes for a folder is a file, name another place",
    errno.ENOENT: "name another path",
    errno.EEXIST: "something of that name is in the way, name another place",
    errno.ELOOP: "its links lead in a circle, name another place",
    errno.ETIMEDOUT: "the disk or the way to it does not answer: try again, or name another place",
    errno.EPIPE: "what should read it has ended",
    errno.ENOMEM: "close other programs",
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.EMFILE: "close other programs, or raise the limit with `ulimit -n`",
}


class UserError(Exception):
    """A mistake or lack that the user can mend: one message that says what, where and what to do."""


class Interrupted(Exception):
    """A signal asked the script to end, and everything is saved; `code` is 128 plus the signal's number."""

    def __init__(self, message, signum):
        super().__init__(message)
        self.code = 128 + signum


class Debug(argparse.Action):
    """--debug: errors come with their traceback, until the script ends."""

    shown = False

    def __call__(self, parser, namespace, values, option_string=None):
        Debug.shown = True


class Parser(argparse.ArgumentParser):
    """argparse with --debug, without abbreviations, and with the nearest flags to one that is not there."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, **kwargs)
        self.add_argument("--debug", action=Debug, nargs=0, dest=argparse.SUPPRESS, default=argparse.SUPPRESS,
                          help="show the traceback of an error too")

    def parse_args(self, args=None, namespace=None):
        args, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [word.partition("=")[0] for word in unknown]
            near = "".join(self.likely(flag) for flag in flags if flag.startswith("-"))
            self.error(f"unknown: {' '.join(unknown)}{near}")
        return args

    def likely(self, flag):
        """Return "; did you mean ...?" for a flag that does not exist, or ""."""
        return nearest(flag, self._option_string_actions)

    def error(self, message):
        """End the script with one message: the usage of seventy flags would hide it."""
        leave_it_to_the_first()
        self.exit(2, f"usage: {self.prog} [FLAG ...]; --help explains the flags\nerror: {message}\n")


def nearest(word, words):
    """Return "; did you mean A or B?" with what of `words` is most like `word`, or "" when nothing is."""
    near = difflib.get_close_matches(word, list(words), n=2)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def speaks():
    """Tell whether this is the process that tells what all that torchrun has started have seen alike."""
    return int(os.environ.get("RANK", 0)) == 0


def leave_it_to_the_first():
    """Where torchrun runs several processes, let the first of this machine report an error that all have.

    When that one has ended torchrun ends the others, within their wait here; if it has not failed, they speak too.
    """
    if int(os.environ.get("LOCAL_RANK", 0)) > 0:
        with suppress(KeyboardInterrupt):
            time.sleep(WAIT_FOR_THE_FIRST)


def run_script(main):
    """Call `main()`; a `UserError` ends the script with its message and exit code 2, Ctrl-C with 130.

    So does a lack of memory, or of another process. After --debug, the traceback comes first. When nobody reads the
    output any more (`| head`), the script ends without a word, as a closed pipe ends other programs, with 141.
    """
    Debug.shown = False
    try:
        result = main()
        sys.stdout.flush()
        return result
    except Interrupted as interruption:
        leave_it_to_the_first()
        print(interruption, file=sys.stderr)
        sys.exit(interruption.code)
    except (UserError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, BrokenPipeError) and error.filename is None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more
            sys.exit(128 + 13)  # SIGPIPE
        leave_it_to_the_first()
        if isinstance(error, RuntimeError) and not (lacks_memory(error) or lost_another(error)):
            raise
        if Debug.shown:
            traceback.print_exc()
        print(f"error: {error if isinstance(error, UserError) else described(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def lacks_memory(error):
    """Tell whether an error says that there is not enough memory: Python's own, or torch's on any device."""
    words = "out of memory|can't allocate memory|not enough memory"
    return isinstance(error, MemoryError) or isinstance(error, RuntimeError) and bool(re.search(words, str(error)))


def lost_another(error):
    """Tell whether an error, Gloo's or NCCL's, says that another process of this training has ended."""
    words = ("connection (was )?(closed|reset) by (remote )?peer|broken pipe|pair is not connected|"
             "remote process (has )?exited")
    return (int(os.environ.get("WORLD_SIZE", 1)) > 1 and isinstance(error, RuntimeError)
            and bool(re.search(words, str(error), re.IGNORECASE)))


def described(error):
    """Return an OSError, a lack of memory or of another process as a message that names the file and what to do."""
    if lost_another(error):
        return "another process of this training has ended, and its message says why; --resume goes on from last.pt"
    if lacks_memory(error):
        detail = f" ({' '.join(str(error).split())[:200]})" if str(error) else ""
        return (f"not enough memory{detail}; close other programs, or train with --accumulate N, the same update in N "
                "parts, a smaller --batch_size or a smaller --max_length")
    if error.errno is None:  # a library's own, with a text of its own
        return str(error)
    file = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    return f"{file}{error.strerror}; {remedy(error)}"


def remedy(error):
    """Return what to do about an error in reading or writing a file."""
    return REMEDIES.get(error.errno, "try again, or name another place")
