"""Readers on the real files, and data sets that tokenize once, truncate and pad. Bad files: test_reading*.py."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import datasets
from datasets import low_shot
from engine import batching
from prepare_submit import prediction_ids
from tasks import MOVIES, PARAPHRASE, SENTIMENT, SIMILARITY, read_rows
from tokenizer import BertTokenizer

# File -> its format, and how many usable rows it has: the course's own, then the cut one that development used.
REAL_FILES = {
    "ids-sst-train.csv": (SENTIMENT, 8544), "ids-sst-dev.csv": (SENTIMENT, 1101),
    "ids-sst-test-student.csv": (SENTIMENT, 2210), "ids-cfimdb-train.csv": (MOVIES, 1707),
    "ids-cfimdb-dev.csv": (MOVIES, 245), "ids-cfimdb-test-student.csv": (MOVIES, 488),
    "quora-train.csv": (PARAPHRASE, 141498, 19632), "quora-dev.csv": (PARAPHRASE, 20212),
    "quora-test-student.csv": (PARAPHRASE, 40431, 3000), "sts-train.csv": (SIMILARITY, 6040),
    "sts-dev.csv": (SIMILARITY, 863), "sts-test-student.csv": (SIMILARITY, 1725),
}
SST = "\tid\tsentence\tsentiment\n0\ts1\ta cat\t3\n1\ts2\ta dog\t{}\n"
QUORA = "\tid\tsentence1\tsentence2\tis_duplicate\n0\tq1\ta\tb\t1.0\n1\tq2\ta\tb\t{}\n"
STS = "\tid\tsentence1\tsentence2\tsimilarity\n0\tt1\ta\tb\t2.5\n1\tt2\ta\tb\t{}\n"


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a text to a file and gives its path."""
    def write_text(text):
        path = tmp_path / "file.csv"
        path.write_text(text, encoding="utf-8")
        return str(path)
    return write_text


@pytest.mark.parametrize("name", REAL_FILES)
def test_real_file(name, course_dir, capsys):
    form, *counts = REAL_FILES[name]
    path = course_dir / name
    if not path.exists():
        pytest.skip(f"no {name} here")
    labelled = "test" not in name
    rows = read_rows(path, form, labelled)

    assert len(rows) in counts
    assert {len(row) for row in rows} == {len(form.texts) + labelled + 1}
    ids = [row[-1] for row in rows]
    assert len(set(ids)) == len(ids) and all(ids)
    assert ids == prediction_ids(path, form, labelled)
    if labelled:
        labels = {row[-2] for row in rows}
        assert {type(label) for label in labels} == {form.type}
        assert (min(labels), max(labels)) == (0, 1 if "cfimdb" in name else form.maximum)
    said = capsys.readouterr().out
    assert f"{len(rows)} " in said and str(path) in said
    assert ("2 rows without a label" in said) == (name == "quora-dev.csv")


def test_labels_at_the_ends_of_their_range_are_read(write, capsys):
    assert read_rows(write(SST.format("0")), SENTIMENT)[1][1:] == (0, "s2")
    assert read_rows(write(STS.format("5")), SIMILARITY)[1][2:] == (5.0, "t2")
    assert [row[2] for row in read_rows(write(QUORA.format("0")), PARAPHRASE)] == [1, 0]
    path = write(QUORA.format(" "))
    capsys.readouterr()
    assert len(read_rows(path, PARAPHRASE)) == 1
    assert "load 1 data" in (said := capsys.readouterr().out) and "1 row" in said and "label" in said
    assert prediction_ids(path, PARAPHRASE) == ["q1"]


def test_each_text_is_tokenized_once(tiny_cache, monkeypatch):
    rows = [("a cat", "a dog", 1, "i1"), ("a dog", "the film", 0, "i2"), ("a cat", "a cat", 1, "i3")]
    asked, call = [], BertTokenizer.__call__
    monkeypatch.setattr(BertTokenizer, "__call__", lambda self, text, *args, **kwargs: (
        asked.append(text), call(self, text, *args, **kwargs))[1])
    loader = batching.bucket_loader(datasets.SentencePairDataset(rows, SimpleNamespace()), 2, shuffle=True)
    for epoch in range(2):
        loader.batch_sampler.set_epoch(epoch)
        assert sum(len(batch["sent_ids"]) for batch in loader) == 3
    assert sorted(asked) == ["a cat", "a dog", "the film"]


@pytest.mark.parametrize("side, kept", [
    ("head", [101, 1, 2, 3, 4, 102]), ("tail", [101, 7, 8, 9, 10, 102]), ("head+tail", [101, 1, 8, 9, 10, 102])])
def test_truncate(side, kept, tiny_cache):
    ids = [101, *range(1, 11), 102]
    assert batching.truncate(ids, 6, side) == kept
    assert batching.truncate(ids, 12, side) == batching.truncate(ids, 20, side) == ids
    assert batching.truncate(ids, 2, side) == [101, 102]
    data = datasets.SentenceClassificationTestDataset([], SimpleNamespace(max_length=6, truncation=side))
    words = "the a film movie plot cast is was feels looks".split()
    expected = [words[i - 1] for i in kept[1:-1]]
    assert data.tokenizer.convert_ids_to_tokens(data.encode(" ".join(words)))[1:-1] == expected


def test_head_and_tail_of_512_are_those_of_the_paper():
    """Sun et al. 2019, section 5.3.1: the first 128 and the last 382 tokens."""
    ids = [101, *range(1000, 2000), 102]
    assert batching.truncate(ids, 512, "head+tail") == [101, *range(1000, 1128), *range(1618, 2000), 102]


def test_pad():
    token_ids, attention_mask = datasets.pad([[101, 5, 102], [101, 102], [101, 5, 6, 102]])
    assert token_ids.tolist() == [[101, 5, 102, 0], [101, 102, 0, 0], [101, 5, 6, 102]]
    assert attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    assert token_ids.dtype == attention_mask.dtype == torch.int64


def test_low_shot_is_seeded_and_keeps_the_order():
    rows = [(f"text {i}", i % 2, f"id{i}") for i in range(100)]
    few = low_shot(rows, 10, seed=1)
    assert len(few) == 10 and few == low_shot(rows, 10, seed=1) != low_shot(rows, 10, seed=2)
    assert few == sorted(few, key=rows.index) and set(few) <= set(rows)
    assert few != rows[:10]  # drawn, not the head of the file
    assert low_shot(rows, None, 1) == low_shot(rows, 100, 1) == low_shot(rows, 200, 1) == rows
    assert np.unique([row[1] for row in few]).tolist() == [0, 1]
