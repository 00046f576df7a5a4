"""How scripts end that nobody listens to any more, that lack memory, or whose disk fails in an unusual way."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.checkpoint import restoring
from files.errors import REMEDIES, Parser, UserError, described, run_script
from scripts import download_data
from tests.helpers.refusals import ended

ROOT = Path(__file__).parents[2]
TALK = "from files.errors import run_script; run_script(lambda: [print('x' * 99) for _ in range({lines})])"
CAT = ("from files.writing import atomic_write, require_writable as r; r(['/dev/stdout']); "
       "f = atomic_write('/dev/stdout'); ")


def piped(code, listener):
    """Run Python code whose output goes to a process that runs `listener`; return (exit code, errors, its output)."""
    reader = subprocess.Popen(listener, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    if listener == ["true"]:
        reader.wait()
    script = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=reader.stdin, stderr=subprocess.PIPE,
                            text=True, check=False, env={**os.environ, "PYTHONUNBUFFERED": ""})
    return script.returncode, script.stderr, reader.communicate()[0]


@pytest.mark.parametrize("lines", [1, 10_000])  # noticed at the end, and in the middle
def test_output_that_nobody_reads(lines, record):
    code, said, _ = piped(TALK.format(lines=lines), ["true"])
    assert (code, said) == (141, "")
    record("Command line", "output into a pipe that its reader has closed, as `| head`",
           "the script ends without a word, as others do", "exit code 141")


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="no /dev/stdout here")
def test_predictions_into_a_pipe(record):
    code, said, heard = piped(CAT + "file = f.__enter__(); file.write('ids'); f.__exit__(None, None, None)", ["cat"])
    assert (code, said, heard) == (0, "", "ids")
    record("Output files", "--sts_dev_out /dev/stdout, into a pipe", "written there", heard)


def raising(error):
    def main():
        raise error
    return main


@pytest.mark.parametrize("given, error, words", [
    ("no memory for a Python object", MemoryError(), "not enough memory; close other programs"),
    ("no memory on the GPU", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
     "not enough memory (CUDA out of memory. Tried to allocate 20.00 MiB.); "),
    ("no memory for a tensor on the CPU", None, "not enough memory ("),
])
def test_out_of_memory(given, error, words, capsys, record, monkeypatch):
    main = raising(error) if error else lambda: torch.empty(2**58)
    said = ended(main, capsys)
    assert said.startswith(words) and "--accumulate N" in said and "--batch_size" in said
    monkeypatch.setattr(sys, "argv", ["script.py", "--debug"])
    with pytest.raises(SystemExit):
        run_script(lambda: (Parser().parse_args(), main()))
    assert "Traceback" in capsys.readouterr().err
    record("Command line", given, "one error with the ways to need less, exit code 2; --debug adds the traceback",
           said if error else "not enough memory (what torch says); the same advice")


def test_other_errors_of_torch_keep_their_traceback_and_restoring_hides_no_lack_of_memory():
    with pytest.raises(RuntimeError, match="shapes"):
        run_script(raising(RuntimeError("shapes do not match")))
    with pytest.raises(torch.OutOfMemoryError), restoring("best.pt"):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(UserError, match="best.pt"), restoring("best.pt"):
        raise RuntimeError("shapes")


def test_no_false_remedy(tmp_path, capsys, record):
    for number in (errno.EEXIST, errno.ELOOP, errno.ETIMEDOUT, errno.EFBIG, errno.EPIPE, errno.ENOTTY):
        assert "make room" not in described(OSError(number, os.strerror(number), "x"))
        assert number == errno.ENOTTY or number in REMEDIES
    (tmp_path / "file").write_text("")
    said = ended(lambda: download_data.main(["--data_dir", str(tmp_path / "file")]), capsys)
    assert said == f"{tmp_path}/file: File exists; something of that name is in the way, name another place"
    record("Output files", "download_data: --data_dir that is a file", "one error that says so", said, folder=tmp_path)
