"""The throughput benchmark: its textbook computes the same as the project, and its smoke run reports everything."""

import ast
import contextlib
import importlib
import inspect
import io
import json
import random
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks import stopwatch, textbook, this_engine, throughput, workload
from bert import BertModel
from config import BertConfig
from files.pretrained import pretrained_file
from optimizer import AdamW
from tokenizer import BertTokenizer

TINY = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}


@pytest.fixture(scope="module")
def tokenizer():
    return BertTokenizer(pretrained_file("minilm", ("vocab.txt",)))


def test_smoke():
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        throughput.main(["--quick", "--device", "cpu", "--batch_size", "2", "--steps", "1", "--rounds", "1",
                         "--data", "/nowhere", "--limit", "60"])
    lines = out.getvalue().splitlines()
    result = json.loads(lines[-1])
    assert (result["benchmark"], result["shape"], result["device"], result["quick"]) == \
        ("throughput", "minilm", "cpu", True)
    (table,) = result["tables"]
    assert table["batch_size"] == 2 and table["matrix_flops"]["float32"] > 0
    assert list(table["results"]) == ["textbook", "transformers", "minBERT"]
    for name, row in table["results"].items():
        assert any(line.startswith(name) for line in lines)
        assert row["epoch_s"] == pytest.approx(156090 / row["examples_per_s"], rel=1e-3)
        assert row["ms_per_step"] * 156090 / 2 / 1000 == pytest.approx(row["epoch_s"], rel=0.05)
        assert 0 < row["mfu"] < 1 and 0 <= row["padding_share"] < 1 and row["peak_gib"] > 0.1
        assert row["scoring_s"] > 0 and row["startup_s"]["first use"] >= 0
    assert {"imports", "tokenizing, cold", "tokenizing, cached", "model"} <= \
        table["results"]["minBERT"]["startup_s"].keys()
    assert sum("times as many examples" in line for line in lines) == 2


def test_what_the_ablation_switches_off_is_there():
    """A name that has moved, or is replaced where nobody looks it up, would switch nothing off, and nobody notice."""
    for module, name, _ in [place for places in this_engine.OFF.values() for place in places]:
        source = inspect.getsource(importlib.import_module(module))
        used = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
        assert name in used, (module, name)  # where it is looked up, not where it is defined
    means = {name for names in throughput.MEANS.values() for name in names}
    assert means - this_engine.OFF.keys() == {"bf16", "buckets", "fused AdamW", "kept memory"}


def test_textbook_tokenizes_as_the_project_does(tokenizer):
    rows = workload.read_files(workload.SAMPLE_DIR)
    texts = [text for task_rows in rows.values() for row in task_rows for text in row[:-1]] + ["Über, naïve(x)", "it's"]
    assert [textbook.encode(text, tokenizer.vocab) for text in texts] == [tokenizer.encode(text) for text in texts]


def test_textbook_encodes_as_bert_does():
    """With the same weights, in the order in which both define them."""
    torch.manual_seed(0)
    plain, bert = textbook.Model(**TINY).eval(), BertModel(BertConfig(**TINY)).eval()
    with torch.no_grad():
        for p in plain.parameters():
            p.normal_(0, 0.5)
        encoder = {name: p for name, p in plain.named_parameters() if not name.startswith("heads")}
        for target, p in zip(bert.parameters(), encoder.values(), strict=True):
            assert target.shape == p.shape
            target.copy_(p)
        bert.embed_layer_norm.eps = plain.norm.eps
        for layer in bert.bert_layers:
            layer.attention_layer_norm.eps = layer.out_layer_norm.eps = plain.norm.eps
        ids = torch.tensor([[2, 7, 9, 3, 0], [2, 8, 4, 5, 3]])
        mask = (ids != 0).long()
        assert torch.allclose(plain.encode(ids, mask), bert(ids, mask)["pooler_output"], atol=1e-5)


def test_textbook_adamw_is_the_contract_s():
    torch.manual_seed(0)
    ours, theirs = ([nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(4))] for _ in range(2))
    optimizers = textbook.AdamW(ours, lr=1e-2), AdamW(theirs, lr=1e-2, weight_decay=0.01)
    for _ in range(5):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = q.grad = torch.randn_like(p)
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def test_made_up_rows_have_the_stored_lengths(tokenizer):
    _, lengths, source = workload.workload("/nowhere", None, tokenizer, seed=3)
    assert "data/sample" in source
    for task in workload.COURSE_TASKS:
        assert sorted(workload.packed(lengths[task])) == workload.lengths_of(task).tolist()


def test_the_stored_lengths_are_the_course_s(course_dir, tokenizer):
    _, lengths, source = workload.workload(course_dir, None, tokenizer, seed=3)
    assert source == course_dir
    for task in workload.COURSE_TASKS:
        mean, stored = workload.packed(lengths[task]).mean(), workload.lengths_of(task).mean()
        assert mean == pytest.approx(stored, rel=0.02)


def test_work_of_an_epoch_by_hand():
    """One row of a pair, 3 + 4 - 1 = 6 tokens, in an encoder of one layer."""
    lengths = {"sst": [[2]], "para": [[3, 4]], "sts": [[2, 2]]}
    architecture = {"hidden_size": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    tokens, flops = workload.epoch_work(lengths, architecture, {"sst": 0, "para": 10, "sts": 0})
    weights = 4 * 2 * 2 + 2 * 2 * 8
    assert (tokens, flops) == (60, 10 * (6 * weights * 6 + 3 * (2 * 6 * 6 * 2) * 2))


def test_a_sample_is_spread_over_the_lengths():
    sizes = random.Random(0).sample(range(100), 100)
    assert stopwatch.spread(sizes, sizes, 4) == [12, 37, 62, 87]
    assert sorted(stopwatch.spread([5, 6], [1, 2], 4)) == [5, 6]


class ThousandTokensASecond:
    """A contender whose steps take a millisecond a padded token, on a clock of its own."""

    def __init__(self, job):
        self.startup, self.now = {}, 0.0
        widths = random.Random(1)
        self.batches = {task: [[widths.randint(5, 80), 2] for _ in range(n)] for task, n in job["n"].items()}
        self.score_batches = self.batches

    def tokens(self, task, batch):
        return batch[0], batch[0] * batch[1]

    def train(self, task, batches):
        self.now += sum(width * rows for width, rows in batches) / 1000

    score = train


def test_a_sample_is_scaled_to_the_epoch(monkeypatch):
    job = {"n": {"sst": 10, "para": 50, "sts": 1}, "device": "cpu", "spawned": 0.0,
           "samples": {"sst": 1, "para": 6, "sts": 1}, "score_samples": {"sst": 2, "para": 1, "sts": 1}}
    watch = stopwatch.Stopwatch(ThousandTokensASecond, job)
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: watch.contender.now)
    padded = {task: sum(w * n for w, n in batches) for task, batches in watch.contender.batches.items()}
    assert watch.ready["tokens"]["para"] == [padded["para"] / 2, padded["para"]]
    assert watch.ready["batches"] == job["n"]
    contender = SimpleNamespace(ready=watch.ready, rounds=[watch.train()])
    assert watch.train().keys() == job["n"].keys() and watch.train()["para"] < padded["para"] / 1000 / 5
    lengths = {task: [[9]] * 2 * n for task, n in job["n"].items()}
    expected = sum(padded[task] / 1000 * count / len(lengths[task])
                   for task, count in workload.TRAIN_EXAMPLES.items())
    assert throughput.epochs(contender, lengths) == [pytest.approx(expected)]
    assert throughput.scaled(contender, "score", watch.score(), lengths, {"sst": 40}) == \
        pytest.approx(padded["sst"] / 1000 * 2)
