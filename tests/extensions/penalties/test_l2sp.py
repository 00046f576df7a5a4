"""L2-SP by hand: the penalty, its gradient, and that it counts once a step."""

import pytest
import torch

from engine.step import TrainingStep
from extensions import GRADIENTS, TASK_LOSSES
from extensions.penalties.l2sp import L2SP
from extensions.specs import build
from extensions.task_weights.fixed import FixedWeights
from tasks import TASKS
from tests.helpers.fixtures_tiny import losses_of_20_steps, part_of
from tests.helpers.regularizer_cases import COURSE_TASKS, a_batch, no_waiting, tiny_model, total


def started(model, **options):
    """Return an L2SP penalty that starts with the model as it is, all of whose weights have a gradient, of zeros."""
    penalty = L2SP(**options)
    penalty.start(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    return penalty


def test_nothing_to_pay_for_the_encoder_at_the_start(bert_dir):
    model = tiny_model(bert_dir)
    penalty = started(model, beta=0.0)
    value = penalty.of_weights(model)
    grads = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
    assert value.item() == 0 and not any(grad.any() for grad in grads if grad is not None)


def test_by_hand(bert_dir):
    """Every weight of the encoder moved by 0.1 costs alpha / 2 · 0.01; a head's weight v costs beta / 2 · v²."""
    model = tiny_model(bert_dir).double()
    penalty = started(model, alpha=0.3, beta=0.7)
    with torch.no_grad():
        for p in model.bert.parameters():
            p.add_(0.1)
    heads = {name: p.detach() for name, p in model.named_parameters() if not name.startswith("bert.")}
    matrices = {name: v for name, v in heads.items() if v.dim() == 2}
    assert {name.split(".")[0] for name in matrices} == {"sentiment_head", "paraphrase_head", "similarity_head"}
    count = sum(p.numel() for p in model.bert.parameters())
    expected = 0.15 * 0.01 * count + 0.35 * sum((v**2).sum().item() for v in matrices.values())
    value = penalty.of_weights(model)
    assert value.item() == pytest.approx(expected)
    value.backward()
    for name, p in model.named_parameters():
        wanted = 0.03 if name.startswith("bert.") else 0.7 * p if name in matrices else 0.0
        assert torch.allclose(p.grad, torch.zeros_like(p) + wanted)


def test_what_a_step_does_not_train_stays(bert_dir):
    """A step of SST alone pulls at no other head, nor at the pooler, which the mean of the tokens leaves unread."""
    model = tiny_model(bert_dir)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step = step_of(model, penalties=[L2SP(alpha=0.3, beta=0.7)], lr=0.1)
    with torch.no_grad():
        for p in model.bert.parameters():
            p.add_(0.1)
    step([{"sst": part_of(a_batch("sst", bert_dir))}])
    moved = {name.split(".")[0] for name, p in model.named_parameters()
             if not torch.allclose(p, before[name] + (0.1 if name.startswith("bert.") else 0.0))}
    assert moved == {"bert", "sentiment_head"}
    assert torch.allclose(model.bert.pooler_dense.weight, before["bert.pooler_dense.weight"] + 0.1)


def step_of(model, gradient="sum", weights=None, penalties=(), lr=0.0):
    """Return a training step over three tasks with SGD, so that `.grad` stays to be looked at."""
    losses = {task: TASK_LOSSES[TASKS[task].loss] for task in COURSE_TASKS}
    return TrainingStep(model, losses, torch.optim.SGD(model.parameters(), lr=lr), penalties=penalties,
                        gradient=build(gradient, GRADIENTS), weights=weights, precision="fp32", max_grad_norm=1e9,
                        device=torch.device("cpu"))


@pytest.mark.parametrize("gradient, weights", [
    ("sum", None), ("sum", FixedWeights(COURSE_TASKS, sst=0.0, para=5.0)), ("pcgrad", None)])
def test_it_counts_once_a_step_whatever_the_tasks_become(gradient, weights, bert_dir):
    """Three tasks, one of them in two parts: the gradient differs from that without by alpha (w - w0) and beta v."""
    found = {}
    for penalties in ([], [L2SP(alpha=0.3, beta=0.7)]):
        model = tiny_model(bert_dir)
        torch.manual_seed(0)
        step = step_of(model, gradient, weights, penalties)
        with torch.no_grad():
            for p in model.bert.parameters():
                p.add_(0.1)
        whole = {task: part_of(a_batch(task, bert_dir)) for task in COURSE_TASKS}
        half = {"para": whole["para"]._replace(share=0.5)}
        torch.manual_seed(0)
        step([{**whole, **half}, half])
        found[bool(penalties)] = {name: p.grad if p.grad is not None else torch.zeros_like(p)
                                  for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        expected = 0.03 if name.startswith("bert.") else 0.7 * p.detach() if p.ndim > 1 else 0.0
        expected = torch.zeros_like(p) + (0.0 if name.startswith("bert.pooler") else expected)  # which nobody reads
        torch.testing.assert_close(found[True][name] - found[False][name], expected, atol=1e-5, rtol=1e-3, msg=name)


def test_a_step_that_trains_no_matrix(bert_dir):
    """A frozen encoder under the cosine's scale and bias: nothing to pay, and nothing that ends the step."""
    model = tiny_model(bert_dir, option="pretrain", pair_encoding={"para": "bi", "sts": "bi"},
                       pair_score={"para": "cosine", "sts": "cosine"})
    step = step_of(model, penalties=[L2SP()])
    step([{"sts": part_of(a_batch("sts", bert_dir))}])
    assert {p.ndim for p in model.parameters() if p.grad is not None} == {0}


def test_state_resumes_exactly(bert_dir):
    model = tiny_model(bert_dir)
    penalty = started(model)
    with torch.no_grad():
        model.bert.word_embedding.weight.add_(1.0)
    resumed = started(model)
    assert not resumed.of_weights(model).equal(penalty.of_weights(model))
    resumed.load_state_dict({name: w.clone() for name, w in penalty.state_dict().items()})
    assert resumed.of_weights(model).equal(penalty.of_weights(model))
    assert set(penalty.state_dict()) == {name for name, _ in model.bert.named_parameters()}


def test_a_frozen_encoder_costs_nothing(bert_dir):
    model = tiny_model(bert_dir, option="pretrain")
    penalty = started(model, beta=0.0)
    assert penalty.state_dict() == {} and penalty.of_weights(model).item() == 0


def test_the_loss_falls_in_20_steps_and_the_encoder_stays_near(bert_dir, monkeypatch):
    far = {}
    for alpha in (0.0, 10.0):
        model, batch = tiny_model(bert_dir), a_batch("sst", bert_dir)
        before = torch.cat([p.detach().flatten() for p in model.bert.parameters()])
        penalty = started(model, alpha=alpha)

        def loss(model=model, batch=batch, penalty=penalty):
            with no_waiting(monkeypatch):
                return total(model, batch) + penalty.of_weights(model)
        losses = losses_of_20_steps(model, loss)
        far[alpha] = (torch.cat([p.detach().flatten() for p in model.bert.parameters()]) - before).norm().item()
        assert losses[-1] < 0.7 * losses[0]
    assert far[10.0] < 0.5 * far[0.0]
