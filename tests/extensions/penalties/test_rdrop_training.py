"""R-Drop in training: a tiny BERT with and without dropout, padding, the flag in both scripts.

Of the five tests that a technique owes, "identity at initialisation" is here "without dropout it is the loss twice",
and "the exact set of trainable parameters" is "it adds none": gradients reach what they reach without it. Its oracle
and hand-computed cases are in test_rdrop.py.
"""

import re
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import classifier
import multitask_classifier
from extensions import PENALTIES, TASK_LOSSES
from extensions.penalties._divergence import divergence
from extensions.penalties.rdrop import rdrop
from extensions.specs import from_spec
from multitask_classifier import COURSE_TASKS, MultitaskBERT
from tasks import TASKS
from tests.helpers.fixtures_tiny import forward_of, losses_of_20_steps, task_batch
from tests.helpers.regularizer_cases import task_loss


@pytest.fixture
def build(bert_dir):
    """Return a function that makes (a model in training mode, a batch of `task`)."""
    def build(task, dropout=0.0):
        torch.manual_seed(0)
        model = MultitaskBERT(SimpleNamespace(pretrained=bert_dir, option="finetune", hidden_dropout_prob=dropout,
                                              encoder_dropout_prob=dropout)).train()
        return model, task_batch(task, bert_dir)
    return build


@pytest.mark.parametrize("task", COURSE_TASKS)
def test_without_dropout_it_is_the_loss_twice_and_trains_the_same_parameters(task, build):
    model, batch = build(task)
    loss_of = TASK_LOSSES[TASKS[task].loss]
    grads = []
    for penalties, factor in (([], 1), ([rdrop], 2)):
        loss = task_loss(model, batch, loss_of, penalties)
        assert loss.equal(factor * loss_of(forward_of(model, batch)))
        grads.append(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))
    for plain, twice in zip(*grads, strict=True):
        assert (plain is None) == (twice is None)
        if plain is not None:
            torch.testing.assert_close(twice, 2 * plain)


@pytest.mark.parametrize("task", COURSE_TASKS)
def test_with_dropout_both_passes_count_and_the_weight_tells(task, build):
    model, batch = build(task, dropout=0.3)
    loss_of, recorded = TASK_LOSSES[TASKS[task].loss], []

    def recording(forward):
        loss = loss_of(forward)
        recorded.append((loss, forward.logits))
        return loss

    values = {}
    for name, penalties in {"none": [], "0": [from_spec("rdrop:weight=0", PENALTIES)], "1": [rdrop],
                            "3": [from_spec("rdrop:weight=3", PENALTIES)]}.items():
        torch.manual_seed(1)  # the same two masks each time
        values[name] = task_loss(model, batch, recording, penalties)
    (first, p), (second, q) = recorded[-2:]
    assert not p.equal(q) and recorded[0][1].equal(p)
    apart = divergence(task, p, q).item()
    assert apart > 1e-7
    expected = {"none": first, "0": first + second, "1": first + second + apart, "3": first + second + 3 * apart}
    assert {name: value.item() for name, value in values.items()} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-6)
    # The two pull: the gradient of the divergence alone flows through either pass, and not by halves.
    grads = [torch.autograd.grad(divergence(task, a, b), model.bert.word_embedding.weight, retain_graph=True)[0]
             for a, b in ((p, q.detach()), (p.detach(), q), (p, q))]
    assert min(grad.abs().max() for grad in grads) > 0
    torch.testing.assert_close(grads[0] + grads[1], grads[2], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("task", COURSE_TASKS)
def test_padding_does_not_change_the_value(task, build):
    model, batch = build(task)
    wider = {name: F.pad(value, (0, 3)) if torch.is_tensor(value) and value.ndim == 2 else value
             for name, value in batch.items()}
    ids = "token_ids" if task == "sst" else "token_ids_2"
    assert wider[ids].shape[1] == batch[ids].shape[1] + 3
    values = [task_loss(model, b, TASK_LOSSES[TASKS[task].loss], [rdrop]) for b in (batch, wider)]
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("task", COURSE_TASKS)
def test_the_loss_falls_in_20_steps(task, build):
    model, batch = build(task, dropout=0.1)
    losses = losses_of_20_steps(model, lambda: task_loss(model, batch, TASK_LOSSES[TASKS[task].loss], [rdrop]))
    assert losses[-1] < 0.6 * losses[0]


@pytest.fixture
def run(course_folder, monkeypatch, capsys):
    """Return a function that runs a script for two steps and gives the mean losses that it printed, {task: loss}."""
    def run(script, *flags):
        fixed = ["--max_steps", "2", "--batch_size", "4", "--lr", "0"]
        monkeypatch.setattr(sys, "argv", [script.__name__, *fixed, *flags])
        script.main()
        [means] = re.findall("train loss (.*?);", capsys.readouterr().out)
        return {task: float(loss) for task, loss in (mean.split() for mean in means.split(", "))}
    return run


@pytest.mark.parametrize("script, flags", [
    (multitask_classifier, ["--tasks", "para"]), (classifier, ["--dataset", "sst"]),
    (classifier, ["--dataset", "cfimdb", "--option", "finetune"]),
], ids=["multitask", "frozen features", "fine-tuned"])
def test_the_flag_of_both_scripts(script, flags, run):
    """Without dropout the loss is twice the plain one, with it more; of several the last counts, or none."""
    dry = [*flags, "--hidden_dropout_prob", "0", "--encoder_dropout_prob", "0"]
    [(task, plain)] = run(script, *dry).items()
    penalty = ["--penalty", "rdrop:weight=0.5"]
    assert run(script, *dry, *penalty)[task] == pytest.approx(2 * plain, abs=2e-3)
    assert run(script, *dry, "--penalty", "rdrop", *penalty)[task] == pytest.approx(2 * plain, abs=2e-3)
    assert run(script, *dry, *penalty, "--penalty", "none")[task] == pytest.approx(plain, abs=2e-3)
    wet = ["--hidden_dropout_prob", "0.5", "--penalty"]
    light, heavy = (run(script, *flags, *wet, f"rdrop:weight={weight}")[task] for weight in (0, 100))
    assert heavy > light + 0.01


@pytest.mark.parametrize("script", [multitask_classifier, classifier])
@pytest.mark.parametrize("spec, answer", [
    ("smoothing", "choose one of rdrop"), ("rdrop:alpha=2", "weight (default 1.0)"),
    ("rdrop:weight=much", "weight must be a number, not 'much'"), ("", "rdrop"),
])
def test_a_wrong_spec_is_answered_with_the_valid_ones(script, spec, answer, capsys):
    with pytest.raises(SystemExit) as stop:
        script.get_args(["--penalty", spec])
    assert stop.value.code == 2
    assert re.search(f"argument --penalty: .*{re.escape(answer)}", capsys.readouterr().err)
