"""Schedules: counts by hand, all rows of a task equally often, orders, and options that make no sense.

A schedule has no parameters and no output: in place of a model's five tests it is the plan that is checked.
"""

import re
from collections import Counter
from types import SimpleNamespace

import pytest

import tasks
from datasets import SentenceClassificationDataset, SentencePairDataset
from engine.batching import bucket_loader
from extensions import SCHEDULES
from extensions.schedules._sampling import largest_remainder
from extensions.schedules.annealed import Annealed
from extensions.schedules.even import Even
from extensions.schedules.proportional import Proportional
from extensions.schedules.round_robin import RoundRobin
from extensions.schedules.staged import Staged
from extensions.schedules.temperature import Sqrt, Temperature
from extensions.specs import require_run

ALL = [(Proportional, {}), (RoundRobin, {}), (RoundRobin, {"end": "longest"}), (RoundRobin, {"end": "balanced"}),
       (RoundRobin, {"order": "para+sts+sst"}), (Sqrt, {}), (Temperature, {"alpha": 0.3}), (Annealed, {}),
       (Staged, {}), (Staged, {"first": "none", "delay": "sst+sts", "delay_epochs": 2}), (Even, {})]


class Dataset(list):
    """Rows of one token, which are their own batches."""

    def lengths(self):
        return [1] * len(self)

    def collate_fn(self, rows):
        return {"sent_ids": rows}


def loaders_of(batch_size=4, **rows):
    return {task: bucket_loader(Dataset(range(count)), batch_size, shuffle=True, seed=i)
            for i, (task, count) in enumerate(rows.items())}


@pytest.fixture
def loaders():
    """Batches: sst 4 (the last of two rows), para 16, sts 1."""
    return loaders_of(sst=14, para=64, sts=4)


def taken(steps, task):
    return [tuple(step[task]) for step in steps.plan if task in step]


@pytest.mark.parametrize("kind, options", ALL)
def test_epochs_are_functions_of_seed_and_epoch_that_show_all_rows_equally_often(kind, options, loaders):
    schedule, same, other = (kind(loaders, seed, 4, **options) for seed in (0, 0, 1))
    steps = [schedule(epoch) for epoch in range(4)]
    assert all(same(epoch).plan == steps[epoch].plan for epoch in (3, 1, 1, 0, 2))  # in any order
    in_turn = isinstance(schedule, RoundRobin | Even)  # their order is no chance, and the batches have their own seeds
    assert (other(3).plan != steps[3].plan) != in_turn
    for task, loader in loaders.items():
        seen = Counter(row for epoch in range(4) for rows in taken(steps[epoch], task) for row in rows)
        times = [seen[row] for row in range(len(loader.dataset))]
        assert max(times) - min(times) <= 1 and max(times) > 0, (task, times)
    for epoch, one in enumerate(steps):
        assert {len(step) for step in one.plan} == ({3} if schedule.joint else {1})
        assert len(one) > 0 and schedule.counts(epoch) == {task: len(taken(one, task)) for task in loaders}


def test_largest_remainder_by_hand():
    """Of 10: 4.5, 3.3, 2.2. Of 2: equal remainders, to the first."""
    assert largest_remainder({"a": 45, "b": 33, "c": 22}, 10) == {"a": 5, "b": 3, "c": 2}
    assert largest_remainder({"a": 1, "b": 1, "c": 1}, 2) == {"a": 1, "b": 1, "c": 0}


def test_counts_of_the_powers_by_hand():
    """Rows 16, 64, 4 in batches of 4: 21 steps. Their square roots: 4, 8, 2; shares 2/7, 4/7, 1/7."""
    loaders = loaders_of(sst=16, para=64, sts=4)
    assert Proportional(loaders).counts(0) == {"sst": 4, "para": 16, "sts": 1}
    assert Temperature(loaders, alpha=1.0).counts(5) == {"sst": 4, "para": 16, "sts": 1}
    assert Sqrt(loaders).counts(0) == Temperature(loaders, alpha=0.5).counts(0) == {"sst": 6, "para": 12, "sts": 3}
    assert Temperature(loaders, alpha=0.0).counts(0) == {"sst": 7, "para": 7, "sts": 7}
    assert Sqrt(loaders, steps=700).counts(0) == {"sst": 200, "para": 400, "sts": 100}
    order = [next(iter(step)) for step in Sqrt(loaders)(0).plan]
    assert order != sorted(order) and order != [next(iter(step)) for step in Sqrt(loaders)(1).plan]


def test_annealed_goes_from_1_to_a_fifth():
    """alpha = 1 - 0.8 (e - 1) / (E - 1): 1, 0.6, 0.2 for E = 3; 16^0.6, 64^0.6, 4^0.6 = 5.28, 12.13, 2.30 of 19.71."""
    loaders = loaders_of(sst=16, para=64, sts=4)
    schedule = Annealed(loaders, 0, 3)
    assert [schedule.alpha(epoch) for epoch in range(3)] == pytest.approx([1, 0.6, 0.2])
    assert schedule.counts(0) == {"sst": 4, "para": 16, "sts": 1}
    assert schedule.counts(1) == {"sst": 6, "para": 13, "sts": 2}  # 5.63, 12.93, 2.45
    assert schedule.counts(2) == {"sst": 7, "para": 9, "sts": 5}  # 1.74, 2.30, 1.32 of 5.36: 6.82, 9.00, 5.17
    assert Annealed(loaders, 0, 1).alpha(0) == 1


def test_round_robin_ends():
    loaders = loaders_of(sst=14, para=64, sts=4)
    shortest, longest = RoundRobin(loaders, 0, 2, end="shortest"), RoundRobin(loaders, 0, 2)
    assert shortest.counts(0) == {"sst": 1, "para": 1, "sts": 1} and list(shortest(0).plan[0]) == ["sst", "para", "sts"]
    assert len(longest(0)) == 16 and all(len(step) == 3 for step in longest(0).plan)
    rows = [sorted(rows) for rows in taken(longest(0), "sts")]
    assert rows == [[0, 1, 2, 3]] * 16 and len(set(taken(longest(0), "sts"))) > 1  # anew, in new orders
    two = [batch for epoch in range(16) for batch in taken(shortest(epoch), "para")]
    assert sorted(row for rows in two for row in rows) == list(range(64))  # goes on where it stopped


def test_balanced_is_cais_table():
    """Quora's 141,506 rows are 2,212 batches of 64 (he counts the full ones), so SST comes by 4 rows and STS by 3."""
    loaders = loaders_of(16, sst=8544, para=141_506, sts=6040)
    schedule = RoundRobin(loaders, 0, 1, end="balanced")
    assert {task: loader.batch_sampler.batch_size for task, loader in schedule.loaders.items()} == {
        "sst": 4, "para": 64, "sts": 3}
    assert schedule.lengths == {"sst": 2136, "para": 2212, "sts": 2014}
    assert schedule.counts(0) == {"sst": 2212, "para": 2212, "sts": 2212}
    assert loaders["sst"].batch_sampler.batch_size == 16  # the caller's loaders are left alone
    own = RoundRobin(loaders_of(16, sst=10, para=160), end="balanced", batch_size=0)
    assert own.lengths == {"sst": 10, "para": 10}  # at least one row


def test_order_makes_steps_of_single_tasks():
    schedule = RoundRobin(loaders_of(sst=14, para=64, sts=8), end="shortest", order="para+sts+sst")
    assert [list(step) for step in schedule(0).plan] == [["para"], ["sts"], ["sst"]] * 2
    assert len(schedule(0)) == sum(schedule.counts(0).values()) == 6


def test_stages(loaders):
    assert [Staged(loaders, 0, 3).tasks(epoch) for epoch in range(3)] == [["para"]] + [["sst", "para", "sts"]] * 2
    late = Staged(loaders, 0, 4, first="para+sts", first_epochs=1, delay="sts", delay_epochs=3)
    assert [late.tasks(epoch) for epoch in range(4)] == [["para"], ["sst", "para"], ["sst", "para"],
                                                        ["sst", "para", "sts"]]
    assert late.counts(0) == {"sst": 0, "para": 16, "sts": 0}


def test_even_weighs_by_rows(loaders):
    """14, 64 and 4 rows of 82; 21 batches of 4 rows, so 7 steps of 3."""
    loaders["para"] = bucket_loader(Dataset(range(64)), 8, shuffle=True)
    schedule = Even(loaders)
    assert schedule.counts(0) == {"sst": 7, "para": 7, "sts": 7}
    whole = schedule(0)[0]
    assert {task: part.weight for task, part in whole.items()} == {
        "sst": 14 / 82, "para": 64 / 82, "sts": 4 / 82}
    half = schedule(0).part(0, 1, 2)
    assert all(half[task].weight == part.weight for task, part in whole.items())
    assert len(whole["para"].batch["sent_ids"]) == 4
    assert Proportional(loaders)(0).part(0, 0, 1).popitem()[1].weight == 1.0


@pytest.mark.parametrize("spec, said", [
    ("round-robin:end=longer", "end must be one of shortest, longest, balanced"),
    ("round-robin:order=para+sts", "order=para.sts: name each of sst, para, sts once"),
    ("round-robin:order=para+sts+sst+sst", "order=.*: name each of sst, para, sts once"),
    ("round-robin:order=para+sts+cola", "order must be none, or words of sst, para, sts"),
    ("staged:first=cola", "first must be none, or words of sst, para, sts"),
    ("staged:first=cfimdb", "first=cfimdb: cfimdb is not among the tasks sst, para, sts"),
    ("staged:delay=para", "no task would train in epoch 1: first=para and delay=para leave none over"),
    ("staged:first_epochs=2", "sst, sts would never be trained in 2 epochs: give more --epochs")])
def test_mistakes_are_said(spec, said):
    """Without a loader: before anything is loaded."""
    with pytest.raises(ValueError, match=f"^{re.escape(spec)}: {said}"):
        require_run(spec, SCHEDULES, ["sst", "para", "sts"], 2)


@pytest.mark.parametrize("kind, options", ALL)
def test_on_the_courses_files(kind, options, course_folder):
    """Real loaders: every step holds the rows that the plan says, whole and in parts; SST without rows is left out."""

    read = {task: tasks.read_rows(f"data/{name}-train.csv", form) for task, name, form in (
        ("sst", "ids-sst", tasks.SENTIMENT), ("para", "quora", tasks.PARAPHRASE),
        ("sts", "sts", tasks.SIMILARITY))}
    data = {task: SentenceClassificationDataset(rows, SimpleNamespace()) if task == "sst" else
            SentencePairDataset(rows, SimpleNamespace(), isRegression=task == "sts") for task, rows in read.items()}
    schedule = kind({task: bucket_loader(data[task], 3, shuffle=True) for task in data}, 0, 3, **options)
    for epoch in range(3):
        steps = schedule(epoch)
        for i, step in enumerate(steps):
            assert {task: part.batch["sent_ids"] for task, part in step.items()} == {
                task: [read[task][row][-1] for row in rows] for task, rows in steps.plan[i].items()}
            parts = [steps.part(i, k, 2) for k in range(2)]
            assert all(sum(part[task].share for part in parts) == pytest.approx(1) for task in step)
    if "order" not in options and "delay" not in options:
        data["sst"].dataset = []
        empty = kind({task: bucket_loader(data[task], 3, shuffle=True) for task in data}, 0, 3, **options)
        assert list(empty.counts(2)) == ["para", "sts"] and len(empty(2)) > 0
