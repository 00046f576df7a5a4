"""sanity_check.py passes here, skips what is absent, fails for wrong weights; its data are what transformers says."""

import functools
import http.server
import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import sanity_check
from bert import BertModel
from config import BertConfig
from files import pretrained
from files.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and a hub that cannot be reached."""
    monkeypatch.setenv("MINBERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MINBERT_HUB", "http://127.0.0.1:9")
    return tmp_path / "cache"


def write_fake_bert(folder):
    """Write a random model with enough of a vocabulary for the course's sentences; return it."""
    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=18000, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                                 intermediate_size=8)).eval()
    model.save_pretrained(str(folder))
    return model


def reference_of(model):
    """Return in place of the course's values those of `model`."""
    ids = torch.tensor(sanity_check.COURSE_IDS)
    with torch.no_grad():
        outputs = model(ids, (ids != 0).long())
    return outputs["pooler_output"][:, :8].tolist(), outputs["last_hidden_state"][1, 7, :8].tolist()


def test_it_passes_and_says_which_parts_ran():
    done = subprocess.run([sys.executable, sanity_check.__file__], check=False, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[0].startswith("small BERT") and ": ok" in lines[0]
    assert lines[1].startswith("all-MiniLM-L6-v2") and (": ok" in lines[1] or ": skipped" in lines[1])
    assert lines[2].startswith("bert-base-uncased") and "skipped, not in the cache" in lines[2]
    assert lines[3].startswith("sanity check passed")


def test_wrong_weights_under_the_name_of_bert_base_fail(cache, capsys, monkeypatch):
    write_fake_bert(cache / "bert-base-uncased")
    monkeypatch.setattr(sanity_check, "PACKAGE", "no_such_package")
    with pytest.raises(SystemExit) as stop:
        sanity_check.main([])
    assert stop.value.code not in (0, None)
    small, minilm, base = capsys.readouterr().out.splitlines()
    assert ": ok" in small and ": skipped" in minilm and "setup.sh" in minilm
    assert base.startswith("bert-base-uncased") and ": FAILED" in base and "expected -0.906153" in base


def test_weights_with_the_reference_values_pass(cache, monkeypatch):
    pooler_output, last_hidden_state = reference_of(write_fake_bert(cache / "bert-base-uncased"))
    monkeypatch.setattr(sanity_check, "COURSE_POOLER_OUTPUT", pooler_output)
    monkeypatch.setattr(sanity_check, "COURSE_LAST_HIDDEN_STATE", last_hidden_state)
    assert sanity_check.check_bert_base(download=False) < 1e-6
    monkeypatch.setattr(sanity_check, "COURSE_LAST_HIDDEN_STATE", [value * 1.01 for value in last_hidden_state])
    with pytest.raises(sanity_check.Mismatch, match="last_hidden_state"):
        sanity_check.check_bert_base(download=False)


def test_download_fetches_from_the_hub_and_says_when_it_cannot(cache, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--pretrained minilm"):
        sanity_check.check_bert_base(download=True)
    model = write_fake_bert(tmp_path / "hub" / "bert-base-uncased" / "resolve" / "main")
    monkeypatch.setattr(pretrained, "PINNED_SHA256", {})
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "hub")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MINBERT_HUB", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(sanity_check, "COURSE_POOLER_OUTPUT", reference_of(model)[0])
        monkeypatch.setattr(sanity_check, "COURSE_LAST_HIDDEN_STATE", reference_of(model)[1])
        assert sanity_check.check_bert_base(download=True) < 1e-6
        server.shutdown()
    assert sanity_check.check_bert_base(download=False) < 1e-6  # now from the cache


def test_the_data_file_is_what_its_script_makes(tmp_path):
    """The script's own process stands outside the project, where `datasets` is not ours."""
    if importlib.util.find_spec("transformers") is None or importlib.util.find_spec(sanity_check.PACKAGE) is None:
        pytest.skip("needs transformers and the packaged weights")
    script, made = Path(__file__).parents[1] / "helpers" / "make_sanity_data.py", tmp_path / "made.data"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, script, made], check=True, cwd=tmp_path, env=environment, capture_output=True)
    made, shipped = (torch.load(path, weights_only=True) for path in (made, sanity_check.DATA))
    assert sanity_check.DATA.stat().st_size < 400_000
    torch.testing.assert_close(made.pop("minilm"), shipped.pop("minilm"), rtol=0, atol=1e-6)
    assert made["small"].pop("config") == shipped["small"].pop("config")
    torch.testing.assert_close(made["small"], shipped["small"], rtol=0, atol=1e-6)
