"""Batches out of flat arrays are the contract's, and steps can be built one by one and in parts."""

from types import SimpleNamespace

import pytest
import torch

import tasks
from datasets import SentenceClassificationDataset, SentencePairDataset, SentencePairTestDataset
from engine.batching import bucket_loader
from extensions import SCHEDULES
from multitask_classifier import pack_pairs


def longest_of(batch):
    """Return the width of the wider of a batch's two texts."""
    return max(batch["token_ids_1"].shape[1], batch["token_ids_2"].shape[1])


def packed(batch, max_length):
    """Return the contract's batch with each pair packed into one sequence."""
    sides = (batch[f"{name}_{side}"] for side in (1, 2) for name in ("token_ids", "attention_mask"))
    names = ("token_ids", "attention_mask", "token_type_ids")
    rest = {name: value for name, value in batch.items() if name[-2:] not in ("_1", "_2")}
    return {**dict(zip(names, pack_pairs(*sides, max_length), strict=True)), **rest}


@pytest.mark.parametrize("max_length, truncation", [
    (512, "head"), (32, "head"), (32, "tail"), (33, "head+tail"), (12, "tail"), (7, "head"), (5, "head+tail")])
def test_batches_are_the_contracts(max_length, truncation, course_dir, monkeypatch):
    monkeypatch.setenv("MINBERT_TOKEN_CACHE", "0")
    files = (("ids-sst-dev.csv", tasks.SENTIMENT, SentenceClassificationDataset, {}),
             ("quora-dev.csv", tasks.PARAPHRASE, SentencePairDataset, {}),
             ("sts-dev.csv", tasks.SIMILARITY, SentencePairDataset, {"isRegression": True}))
    for name, form, kind, options in files:
        rows = tasks.read_rows(course_dir / name, form)[:800]
        rows += [(*(text * 3 for text in row[: len(form.texts)]), *row[-2:]) for row in rows[:200]]
        rows.append((*("" for _ in form.texts), 0, "empty"))
        args = SimpleNamespace(pretrained="minilm", max_length=max_length, truncation=truncation)
        data = kind(rows, args, **options)
        for pair_encoding in ("cross", "bi"):
            loader = bucket_loader(data, 32, shuffle=True, pair_encoding=pair_encoding)
            for indices, batch in zip(loader.batch_sampler, loader, strict=True):
                expected = data.collate_fn([rows[i] for i in indices])
                if data.texts == 2 and pair_encoding == "cross":
                    expected = packed(expected, max_length)
                narrow = loader.build(indices)
                assert narrow.keys() == batch.keys() == expected.keys()
                for key, value in expected.items():
                    if torch.is_tensor(value):
                        assert narrow[key].dtype == value.dtype and narrow[key].equal(value), key
                        extra = batch[key].shape[-1] - value.shape[-1]  # as wide as its bucket
                        assert batch[key].equal(torch.nn.functional.pad(value, (0, extra))), key
                    else:
                        assert narrow[key] == batch[key] == value
                if "token_ids" in batch:
                    assert batch["token_ids"].shape[1] == loader.batch_sampler.width(indices)
                else:
                    width = batch["token_ids_1"].shape[1]
                    assert width % 8 == 0 or width == max_length
                    assert batch["token_ids_2"].shape[1] == width < longest_of(expected) + 8


def test_batches_without_labels_and_of_other_data_sets(tiny_cache):
    data = SentencePairTestDataset([("a cat", "a dog", "i1"), ("a", "b", "i2")], SimpleNamespace())
    assert list(next(iter(bucket_loader(data)))) == ["sent_ids", "token_ids", "attention_mask", "token_type_ids"]
    data.dataset = data.dataset[:1]  # other rows in the same data set
    assert data.lengths().tolist() == [7] and [b["sent_ids"] for b in bucket_loader(data)] == [["i1"]]
    data = [3, 1, 2]
    numbers = type("Numbers", (), {"__getitem__": lambda self, i: data[i], "lengths": lambda self: [1, 1, 1],
                                   "collate_fn": lambda self, rows: {"numbers": rows}})()
    assert [batch["numbers"] for batch in bucket_loader(numbers, 2)] == [[3, 1], [2]]


@pytest.fixture
def loaders(tiny_cache):
    words = "the film is not good but funny".split()
    texts = [" ".join(words[: 1 + i % 7]) for i in range(40)]
    data = {"sst": SentenceClassificationDataset([(text, i % 5, f"s{i}") for i, text in enumerate(texts)],
                                                 SimpleNamespace()),
            "para": SentencePairDataset([(text, texts[i - 3], i % 2, f"p{i}") for i, text in enumerate(texts[:9])],
                                        SimpleNamespace())}
    return {task: bucket_loader(data[task], 4, shuffle=True) for task in data}


def same(batch, other):
    assert batch.keys() == other.keys()
    return all(value.equal(other[name]) if torch.is_tensor(value) else value == other[name]
               for name, value in batch.items())


def test_proportional_visits_every_batch_once(loaders):
    schedule = SCHEDULES["proportional"](loaders, seed=1)
    orders = []
    for epoch in (0, 1, 0):
        steps = schedule(epoch)
        assert len(steps) == 10 + 3 and all(len(step) == 1 for step in steps)
        taken = [(task, part.batch) for step in steps for task, part in step.items()]
        assert all(task == {"s": "sst", "p": "para"}[batch["sent_ids"][0][0]] for task, batch in taken)
        for task, loader in loaders.items():
            loader.batch_sampler.set_epoch(epoch)
            ids = [batch["sent_ids"] for taken_task, batch in taken if taken_task == task]
            assert sorted(ids) == sorted(batch["sent_ids"] for batch in loader)
        orders.append([batch["sent_ids"] for _, batch in taken])
    assert orders[0] == orders[2] != orders[1]
    assert SCHEDULES["proportional"](loaders, seed=2)(0).plan != schedule(0).plan
    tasks = [[next(iter(step)) for step in schedule(epoch).plan] for epoch in range(4)]
    assert sorted(tasks[0]) not in tasks and sorted(tasks[0])[::-1] not in tasks  # not one task after another
    assert len(set(map(tuple, tasks))) > 1


def test_a_step_is_the_same_whenever_it_is_built(loaders):
    steps = SCHEDULES["proportional"](loaders)(0)
    for i, step in reversed(list(enumerate(steps))):
        assert all(same(part.batch, steps[i][task].batch) for task, part in step.items())
        assert steps.rows(i) == sum(len(part.batch["sent_ids"]) for part in step.values())


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_parts_of_a_step(n, loaders):
    steps = SCHEDULES["proportional"](loaders)(0)
    for i, step in enumerate(steps):
        parts = [steps.part(i, k, n) for k in range(n)]
        for task, whole in step.items():
            rows, shares = len(whole.batch["sent_ids"]), [part[task].share for part in parts]
            assert whole.share == 1
            assert sum(shares) == pytest.approx(1) and [round(share * rows) for share in shares] == [
                len(range(k, rows, n)) for k in range(n)]
            for k, (part, share) in enumerate(zip(parts, shares)):
                held = slice(k, None, n) if share else slice(0, 1)  # too few rows for all: the first, for nothing
                assert same(part[task].batch, {name: value[held] for name, value in whole.batch.items()})
                assert part[task].weight == whole.weight
