"""The loop over epochs, on a tiny multitask model: it learns, keeps the best epoch, stops on time, repeats itself."""

import math
from types import SimpleNamespace

import pytest
import torch

from engine.loop import fit
from evaluation import evaluate_tasks, multitask_loaders
from extensions import SCHEDULES, TASK_LOSSES
from multitask_classifier import MultitaskBERT, complete, training_loaders
from optimizer import AdamW
from tasks import TASKS
from tests.helpers.fixtures_tiny import tiny_bert_dir, write_course_files

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a BERT of width 24 and, in data/, the course's files with 20 rows each."""
    folder = tmp_path_factory.mktemp("fit")
    write_course_files(folder / "data", rows=20)
    return tiny_bert_dir(folder / "bert", hidden_size=24, num_attention_heads=2).parent


@pytest.fixture
def run(folder):
    """Return a function that trains a model anew with `fit` and returns the losses, scores and saves it saw."""
    def run(evaluate=lambda model, args: 0.0, **options):
        args = complete(SimpleNamespace(**{
            "pretrained": str(folder / "bert"), "data_dir": str(folder / "data"), "epochs": 2, "batch_size": 8,
            "precision": "fp32", "lr": 1e-3, "filepath": "best.pt", **options}))
        torch.manual_seed(0)
        model = MultitaskBERT(args)
        loaders = training_loaders(args)
        optimizer = AdamW(model.parameters(), lr=args.lr)
        seen = SimpleNamespace(model=model, optimizer=optimizer, losses=[], scores=[], saved=[])

        def recorded(task):
            def loss_of(forward):
                loss = TASK_LOSSES[TASKS[task].loss](forward)
                seen.losses.append(loss.item())
                return loss
            return loss_of

        def score():
            seen.scores.append(evaluate(model, args))
            return seen.scores[-1], "no text", {}

        losses = {task: recorded(task) for task in loaders}
        seen.best = fit(model, SCHEDULES["proportional"](loaders, args.seed), losses, optimizer, score,
                        lambda path, **more: seen.saved.append(len(seen.scores)), CPU, args)
        return seen
    return run


@pytest.mark.parametrize("task", ["sst", "para", "sts"])
def test_the_loss_falls_in_twenty_steps(run, task):
    losses = run(tasks=[task], epochs=20, max_steps=20, batch_size=20, hidden_dropout_prob=0.0, lr=1e-2).losses
    assert len(losses) == 20 and losses[-1] < 0.8 * losses[0]


def test_the_best_epoch_is_saved(run):
    scores = iter([0.3, 0.7, 0.7, 0.5, 0.9, 0.1])
    seen = run(evaluate=lambda model, args: next(scores), epochs=6, train_rows=4)
    assert seen.best == 0.9 and seen.saved == [1, 2, 5]


@pytest.mark.parametrize(("max_steps", "steps", "epochs"), [
    (4, 4, 1), (9, 9, 1), (11, 11, 2), (None, 18, 2), (99, 18, 2),
])
def test_max_steps_is_exact(run, max_steps, steps, epochs):
    """20 rows in batches of 8 are 3 steps a task and 9 an epoch."""
    seen = run(max_steps=max_steps)
    assert (len(seen.losses), len(seen.scores)) == (steps, epochs) and seen.saved == [1]
    # The decay ends where training does: the last of n steps, the first w of them warm-up, has 1 / (n - w) of the peak.
    assert seen.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 / (steps - math.ceil(0.1 * steps)))


def test_a_seed_repeats_a_run_whether_or_not_it_is_scored_in_between(run):
    def score(model, args):
        files = {task: getattr(args, f"{task}_dev") for task in args.tasks}
        return evaluate_tasks(multitask_loaders(files, "dev", args, pair_encoding="cross"), model, CPU)["sst"].score

    first, again, scored, other = run(), run(), run(evaluate=score), run(seed=1)
    assert len(first.losses) == 18
    assert first.losses == again.losses == scored.losses
    assert first.losses != other.losses
    weights = first.model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in scored.model.state_dict().items())


def test_training_leaves_a_frozen_encoder_as_it_was_and_without_dropout(run):
    seen = run(option="pretrain", epochs=1)
    start = MultitaskBERT(seen.model.config).bert.state_dict()
    assert all(torch.equal(start[name], tensor) for name, tensor in seen.model.bert.state_dict().items())
    seen.model.train()
    assert seen.model.sentiment_head.training and not any(module.training for module in seen.model.bert.modules())
