"""Pickles that would run code are refused wherever the project reads one, and nobody can add a place that reads all."""

import ast
import io
import pickle
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from bert import BertModel
from config import BertConfig
from engine import token_cache
from tests.files.test_hostile_config import SMALL
from tests.helpers.hostile import Payload, refused, save_hostile
from tokenizer import BertTokenizer

ROOT = Path(__file__).parents[2]
SAYS = "refused, and the payload's file is not there"


@pytest.fixture
def touched(tmp_path):
    """The file that a payload makes; a test in which it was made fails."""
    yield tmp_path / "touched"
    assert not (tmp_path / "touched").exists()


@pytest.fixture
def folder(tmp_path):
    """A folder with a config.json and no weights."""
    BertConfig(**SMALL).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def tar_of_torch_0_1(path, payload):
    """Write the format of torch 0.1: a tar of three pickles."""
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            data = pickle.dumps(payload if name == "pickle" else 0, 2)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def torch_script(path, payload):
    """Write a TorchScript archive, in which there may be any code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)


def plain_pickle(path, payload):
    """Write a pickle that torch has not made."""
    path.write_bytes(pickle.dumps(payload, 2))


WRITERS = {
    "torch's format": lambda path, payload: save_hostile(path, Path(payload.path)),
    "torch's format before 1.6": lambda path, payload: save_hostile(
        path, Path(payload.path), _use_new_zipfile_serialization=False),
    "the tar format of torch 0.1": tar_of_torch_0_1,
    "a TorchScript archive": torch_script,
    "a plain pickle": plain_pickle,
}


@pytest.mark.parametrize("how", WRITERS)
@pytest.mark.parametrize("what, load, name", [
    ("weights", "model", "pytorch_model.bin"), ("a checkpoint", "checkpoint", "best.pt"),
    ("sanity_check.data", "sanity_check", "sanity_check.data")])
def test_torch_files(what, load, name, how, folder, touched, record):
    WRITERS[how](folder / name, Payload(touched))
    message = refused(load, folder if load == "model" else folder / name, record,
                      f"{what} in {how}, with a payload", SAYS, folder.parent)
    assert name in message and "refused" in message or "is not a checkpoint of this project" in message


@pytest.mark.parametrize("given, write", [
    ("an array of objects with a payload", lambda path, payload: np.save(path, np.array([payload]), allow_pickle=True)),
    ("a plain pickle with a payload", plain_pickle)])
def test_the_optimizers_reference(given, write, folder, touched, record):
    path = folder / "optimizer_test.npy"
    write(path, Payload(touched))
    assert "optimizer_test.npy is not the published file" in refused(
        "optimizer_test", path, record, f"optimizer_test.npy: {given}", SAYS, folder)


def test_the_token_cache(tmp_path, touched, bert_dir, monkeypatch, record):
    monkeypatch.setattr(token_cache, "TOKEN_CACHE_TEXTS", 1)
    monkeypatch.setattr(token_cache, "default_cache_dir", lambda: tmp_path)
    monkeypatch.delenv("MINBERT_TOKEN_CACHE", raising=False)
    tokenizer, texts = BertTokenizer.from_pretrained(bert_dir), ["a film"]
    expected = token_cache.tokenize(texts, tokenizer).ids.tolist()
    path = token_cache.token_cache_path(texts, tokenizer)
    save_hostile(tmp_path / "zip.pt", touched)
    plain_pickle(tmp_path / "plain.pt", Payload(touched))
    for hostile in ("zip.pt", "plain.pt"):
        path.write_bytes((tmp_path / hostile).read_bytes())
        assert token_cache.tokenize(texts, tokenizer).ids.tolist() == expected
        assert token_cache.load_tokens(path, 1, len(tokenizer)) is not None  # made anew
    record("Hostile files", "a pickle with a payload in place of a token cache's file",
           "made anew, and the payload's file is not there", "the same ids as without a cache")


def loads(tree):
    """Yield the calls in a module that may run code from a file: (line, what is wrong)."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            for name in names & {"pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}:
                yield node.lineno, f"import {name}"
        if isinstance(node, ast.ImportFrom) and node.module in ("torch", "numpy"):
            if "load" in [alias.name for alias in node.names]:
                yield node.lineno, f"from {node.module} import load"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            where, keywords = ast.unparse(node.func), {keyword.arg: keyword.value for keyword in node.keywords}
            value = {name: getattr(value, "value", None) for name, value in keywords.items()}
            if where == "torch.load" and value.get("weights_only") is not True:
                yield node.lineno, "torch.load without weights_only=True"
            if where in ("np.load", "numpy.load", "np.genfromtxt") and value.get("allow_pickle", False) is not False:
                yield node.lineno, f"{where} with allow_pickle"
            if where in ("torch.jit.load", "pd.read_pickle", "pandas.read_pickle", "torch.hub.load",
                         "torch.serialization.add_safe_globals", "torch.package.PackageImporter"):
                yield node.lineno, where
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
            yield node.lineno, node.func.id


# How often tests do so on purpose: they make hostile files and prove that these are, and read what they wrote.
ON_PURPOSE = {"tests/helpers/hostile.py": 2, "tests/files/test_hostile_pickles.py": 1,
              "tests/course/test_tokenizer.py": 1, "tests/helpers/script_runs.py": 1,
              "tests/course/test_contract.py": 1}


def test_nothing_in_the_tree_reads_a_pickle_that_may_run_code(record):
    seen, files = {}, [path for path in ROOT.rglob("*.py") if not {".git", ".venv", "site-packages"} & {*path.parts}]
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        found = list(loads(ast.parse(path.read_text(encoding="utf-8"))))
        if len(found) != ON_PURPOSE.get(name, 0) and not name.startswith("tests/fuzz/"):
            seen[name] = found
    assert not seen and len(files) > 50
    record("Hostile files", "every torch.load, np.load, pickle, eval and exec in the source",
           "weights_only=True, no allow_pickle, none of the others", "so in every file but for the tests' own payloads")


@pytest.mark.parametrize("code", [
    "torch.load(p)", "torch.load(p, weights_only=False)", "torch.load(p, weights_only=flag)", "import pickle",
    "from pickle import loads", "np.load(p, allow_pickle=True)", "np.load(p, None, allow_pickle=flag)",
    "from torch import load", "joblib = 1\nimport joblib", "eval(text)", "torch.jit.load(p)"])
def test_the_search_finds_them(code):
    assert len(list(loads(ast.parse(code)))) == 1
    assert not list(loads(ast.parse("torch.load(p, weights_only=True); np.load(p); np.load(p, allow_pickle=False)")))


def test_a_model_of_ours_still_loads(folder):
    torch.save(BertModel(BertConfig(**SMALL)).state_dict(), folder / "pytorch_model.bin")
    assert BertModel.from_pretrained(folder).config.hidden_size == 12
