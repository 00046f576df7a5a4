"""Fixtures for the whole test suite: where the course's files are, and a tiny BERT in place of the real one."""

from pathlib import Path

import pytest
import torch

from tests.fixtures_tiny import bert_dir, course_folder, tiny_bert, tiny_cache  # noqa: F401

ROOT = Path(__file__).parent


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs a CUDA device; skipped without one")


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def course_dir():
    """The folder that holds the course's data files; the test is skipped where they are not at hand."""
    for folder in (ROOT.parent / "shared" / "data" / "course", ROOT / "data"):
        if (folder / "sts-train.csv").exists():
            return folder
    pytest.skip("the course's data files are not here; python -m scripts.download_data fetches them")
