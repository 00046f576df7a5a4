"""Fixtures for the whole test suite: where the course's files are, and a tiny BERT in place of the real one."""

import os
from pathlib import Path

# The models are tiny: a second thread costs more than it saves, above all where other work is running.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402 - torch reads the variable when it is imported
import torch  # noqa: E402

from tests.helpers import reliability  # noqa: E402
from tests.helpers.fixtures_tiny import bert_dir, course_folder, tiny_bert, tiny_cache  # noqa: E402, F401
from tests.helpers.reliability import record  # noqa: E402, F401

ROOT = Path(__file__).parent


def pytest_addoption(parser):
    parser.addoption("--reliability", metavar="FILE", help="write the table of recorded cases into this document; "
                     "not with -n, whose workers run the tests in no fixed order")


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs a CUDA device; skipped without one")
    if config.getoption("reliability") and config.getoption("numprocesses", None):
        raise pytest.UsageError("--reliability writes its rows in the order of the tests: run it without -n")


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Take over the cases that a worker of `pytest -n` recorded; one that crashed left none."""
    reliability.RECORDER.rows.update(getattr(node, "workeroutput", {}).get("cases", ()))


def pytest_sessionfinish(session, exitstatus):
    """Write the table of cases, or, after a full run that passed, see that it is the one in docs/."""
    if hasattr(session.config, "workeroutput"):  # a worker of `pytest -n`, which has seen only some of the cases
        session.config.workeroutput["cases"] = list(reliability.RECORDER.rows.items())
        return
    document, options = session.config.getoption("reliability"), session.config.option
    whole = not (options.keyword or options.markexpr or session.config.getoption("file_or_dir"))
    if document:
        reliability.write(document)
    elif exitstatus == 0 and whole and (cases := reliability.stale(all_ran=course_files() is not None)):
        print(f"\ndocs/RELIABILITY.md is not that of this run: {'; '.join(cases[:5])}\n"
              "pytest --reliability docs/RELIABILITY.md writes it anew")
        session.exitstatus = 1


def course_files():
    """Return the folder that holds the course's data files, or None."""
    folders = (ROOT.parent / "shared" / "data" / "course", ROOT / "data")
    return next((folder for folder in folders if (folder / "sts-train.csv").exists()), None)


@pytest.fixture(scope="session")
def course_dir():
    """The folder that holds the course's data files; the test is skipped where they are not at hand."""
    folder = course_files()
    if folder is None:
        pytest.skip("the course's data files are not here; python -m scripts.download_data fetches them")
    return folder
