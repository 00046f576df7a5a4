"""The momentum teacher: its average by hand, the divergence of two models, resume, and SMART beside it."""

import pytest
import torch
import torch.nn.functional as F

from extensions.penalties._divergence import smoothness
from extensions.penalties.bregman import Bregman
from extensions.penalties.smart import smart
from tests.helpers.fixtures_tiny import losses_of_20_steps
from tests.helpers.regularizer_cases import (
    CASES,
    a_batch,
    by_hand,
    forward_of,
    no_waiting,
    reached,
    tiny_model,
    total,
    value_of,
)


def started(model, **options):
    """Return a Bregman penalty that starts with the model as it is."""
    penalty = Bregman(**options)
    penalty.start(model)
    return penalty


def moved(model, size=0.3):
    """Change all weights of the model a little, the same at every call."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator).to(p))


@pytest.mark.parametrize("task, encoding", CASES)
def test_it_costs_nothing_at_the_start_and_trains_the_same_parameters(task, encoding, bert_dir):
    model, batch = tiny_model(bert_dir, pair_encoding=encoding), a_batch(task, bert_dir)
    names = [name for name, _ in model.named_parameters()]
    penalty = started(model)
    assert value_of(penalty, model, batch).abs().item() < 1e-9
    moved(model, 0.01)
    assert value_of(penalty, model, batch).item() > 1e-9
    assert reached(model, total(model, batch)) == reached(model, total(model, batch, penalty))
    assert [name for name, _ in model.named_parameters()] == names == list(penalty.state_dict())
    torch.testing.assert_close(value_of(penalty, model, batch),
                               value_of(penalty, model, a_batch(task, bert_dir, extra=3)), rtol=1e-3, atol=1e-9)


def test_by_hand():
    """θ' = β θ' + (1 - β) θ twice; then squared errors of the two models' logits, in float64."""
    model, batch = by_hand("sts", 1)
    penalty = started(model, weight=3.0, beta=0.9)
    weights = [model.W.detach().clone()]
    for change in (1.0, -0.5):
        with torch.no_grad():
            model.W += change
        weights.append(model.W.detach().clone())
        penalty.after_step(model)
    teacher = 0.81 * weights[0] + 0.09 * weights[1] + 0.1 * weights[2]
    x = model.bert.word_embedding(batch["token_ids"]).detach() * batch["attention_mask"].unsqueeze(-1)
    apart = (x.sum(1) @ (weights[2] - teacher)).square().mean()
    value = value_of(penalty, model, batch)
    torch.testing.assert_close(value, 3 * apart)
    [gradient] = torch.autograd.grad(value, model.W)
    torch.testing.assert_close(gradient, 3 * x.sum(1).T @ (x.sum(1) @ (weights[2] - teacher)))  # mean of B = 2 squares


def test_classes_are_compared_with_a_teacher_without_dropout(bert_dir):
    model, batch = tiny_model(bert_dir, dropout=0.5), a_batch("sst", bert_dir)
    penalty = started(model)
    moved(model)
    with torch.no_grad():
        teacher = forward_of(tiny_model(bert_dir).eval(), batch).logits
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    forward = forward_of(model, batch)
    forward._logits = logits
    for _ in range(2):  # no mask is drawn
        torch.testing.assert_close(penalty(forward), smoothness("sst", logits, teacher))
    p, q = logits.log_softmax(1), teacher.log_softmax(1)
    both = F.kl_div(q, p.exp(), reduction="batchmean") + F.kl_div(p, q.exp(), reduction="batchmean")
    torch.testing.assert_close(penalty(forward), both)


def test_state_resumes_exactly_in_place(bert_dir):
    model, batch = tiny_model(bert_dir), a_batch("para", bert_dir)
    penalty = started(model)
    moved(model)
    penalty.after_step(model)
    state = {name: value.clone() for name, value in penalty.state_dict().items()}
    again = started(tiny_model(bert_dir))
    places = [p.data_ptr() for p in again.teacher.parameters()]
    again.load_state_dict(state)
    assert places == [p.data_ptr() for p in again.teacher.parameters()]
    for each in (penalty, again):
        each.after_step(model)
    assert value_of(penalty, model, batch).equal(value_of(again, model, batch)) and value_of(again, model, batch) > 0


def test_a_frozen_encoder_is_no_part_of_the_state(bert_dir):
    model = tiny_model(bert_dir, option="pretrain").requires_grad_(True)
    model.bert.requires_grad_(False)
    penalty = started(model)
    assert penalty.state_dict() and not any(name.startswith("bert.") for name in penalty.state_dict())
    assert not any(p.requires_grad for p in penalty.teacher.parameters())
    assert not {id(p) for p in penalty.teacher.parameters()} & {id(p) for p in model.parameters()}


@pytest.mark.parametrize("others", [[], [smart]], ids=["alone", "with smart"])
def test_the_loss_falls_in_20_steps_more_slowly(others, bert_dir, monkeypatch):
    last = {}
    for weight in (0.0, 50.0):
        model, batch = tiny_model(bert_dir, dropout=0.1), a_batch("sst", bert_dir)
        penalty = started(model, weight=weight)

        def loss(model=model, batch=batch, penalty=penalty):
            penalty.after_step(model)
            with no_waiting(monkeypatch):
                return total(model, batch, penalty, *others)
        losses = losses_of_20_steps(model, loss)
        last[weight] = total(model.eval(), batch).item()
        assert weight or losses[-1] < 0.6 * losses[0]
    assert 1.6 > last[50.0] > last[0.0] + 0.1
