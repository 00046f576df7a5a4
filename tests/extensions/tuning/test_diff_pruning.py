"""Diff pruning: no difference at first, gates and their expected number by hand, sparsity, what the report counts."""

import copy
import json
import math

import pytest
import torch
import torch.nn as nn

import multitask_classifier
from engine.checkpoint import load_checkpoint, load_weights
from engine.packed_attention import pack_attention
from engine.step import TrainingStep
from extensions import ADAPT, TASK_LOSSES
from extensions.encoder import techniques_of
from extensions.specs import from_spec
from extensions.tuning.adapters import adapters
from extensions.tuning.bitfit import bitfit
from extensions.tuning.diff_pruning import Difference, diff_pruning, modules_of
from extensions.tuning.lora import lora
from extensions.tuning.mixout import mixout
from multitask_classifier import MultitaskBERT
from optimizer import AdamW
from tasks import TASKS
from tests.helpers.fixtures_tiny import forward_of, losses_of_20_steps, part_of
from tests.helpers.regularizer_cases import COURSE_TASKS, a_batch, no_waiting, tiny_model, total

BOTH = pytest.mark.parametrize("structured", [False, True])


def differing(bert_dir, **options):
    """Return a tiny model with diff pruning in its encoder."""
    model = tiny_model(bert_dir)
    diff_pruning(model.bert, **options)
    return model


def moved(model, seed=7):
    """Give the model differences and gates on both sides of 0, the same at every call; return it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in modules_of(model):
            for name, p in module.named_parameters():
                if name.endswith("_delta"):
                    p.copy_(0.3 * torch.randn(p.shape, generator=generator))
                elif name.endswith("_gate"):
                    p.copy_(3 * torch.randn(p.shape, generator=generator) / module.rate)
    return model


def technique(model):
    """Return the object attached to a model's encoder."""
    [found] = techniques_of(model, "of_weights")
    return found


@BOTH
@pytest.mark.parametrize("task", COURSE_TASKS)
def test_nothing_changes_at_first_in_training_and_evaluation(task, structured, bert_dir):
    plain, model = tiny_model(bert_dir), differing(bert_dir, structured=structured)
    batch = a_batch(task, bert_dir)
    assert forward_of(model, batch).logits.equal(forward_of(plain, batch).logits)
    assert forward_of(model.eval(), batch).logits.equal(forward_of(plain.eval(), batch).logits)
    assert technique(model).report(model).startswith("diff: 0 of ")


@BOTH
def test_trains_differences_and_gates_of_linear_layers_and_norms_alone(structured, bert_dir):
    plain, model = tiny_model(bert_dir), differing(bert_dir, structured=structured)
    before = {name: p for name, p in plain.named_parameters()}
    changed = {f"{name}.{p}" for name, module in plain.bert.named_modules() for p in ("weight", "bias")
               if isinstance(module, (nn.Linear, nn.LayerNorm))}
    parts = ("delta", "gate", "group") if structured else ("delta", "gate")
    assert len(changed) == 2 * (7 + 3)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name in before if not name.startswith("bert.")} | {
        f"bert.{name}_{part}" for name in changed for part in parts}
    assert set(plain.state_dict()) < set(model.state_dict())
    moved(model)
    (total(model, a_batch("sst", bert_dir)) + technique(model).of_weights(model)).backward()
    unused = ("pooler_dense.weight_delta", "pooler_dense.bias_delta")  # by mean pooling
    assert all((p.grad is not None) == (p.requires_grad and not name.endswith(unused))
               for name, p in model.bert.named_parameters())


def layer_of(model):
    """Return the first layer's module over its feed-forward's weight, w, delta, and alpha, in float64."""
    module = model.bert.double().bert_layers[0].interm_dense
    return module, module.weight, module.weight_delta, module.rate * module.weight_gate


@BOTH
def test_a_drawn_and_a_deterministic_gate_by_hand(structured, bert_dir, monkeypatch):
    model = moved(differing(bert_dir, structured=structured))
    module, w, delta, alpha = layer_of(model)
    group = 1.0
    if structured:
        group = 3 / (1 + math.exp(-0.3)) - 1.5
        with torch.no_grad():
            module.weight_group.fill_(0.3 / module.rate)
    u = torch.rand(w.shape, dtype=torch.float64)
    monkeypatch.setattr(torch, "rand_like", lambda p: u if p.shape == w.shape else torch.full_like(p, 0.5))
    for mode, noise in ((True, u.log() - (1 - u).log()), (False, 0.0)):
        z = (1 / (1 + (-(alpha + noise)).exp()) * 3 - 1.5).clamp(0, 1)
        assert ((z == 0) | (z == 1)).double().mean() > 0.2 and ((z > 0) & (z < 1)).any()
        weight = module.train(mode).weights()["weight"]
        torch.testing.assert_close(weight, w + z * group * delta)
    if structured:
        weight.sum().backward()
        slope = 3 * math.exp(-0.3) / (1 + math.exp(-0.3)) ** 2
        assert module.weight_group.grad.item() == pytest.approx(slope * (z * delta).sum().item())


@BOTH
def test_the_loss_is_the_mean_number_of_drawn_differences(structured, bert_dir):
    """P(z > 0) = sigmoid(alpha), over gates that are drawn 300 times; of a whole matrix's gate, over its own."""
    model = moved(differing(bert_dir, structured=structured, penalty=0.5))
    with torch.no_grad():
        for module in modules_of(model):
            if structured:
                module.weight_group.copy_(0.7 / module.rate), module.bias_group.copy_(-0.4 / module.rate)
        expected = technique(model).of_weights(model) / 0.5
        by_hand = sum((torch.sigmoid(module.rate * module.get_parameter(f"{name}_gate")).sum()
                       * (1 / (1 + math.exp({"weight": -0.7, "bias": 0.4}[name])) if structured else 1)).item()
                      for module in modules_of(model) for name in ("weight", "bias"))
        drawn = sum(module.found().item() for _ in range(300) for module in modules_of(model)) / 300
    assert expected.item() == pytest.approx(by_hand, rel=1e-5)
    assert drawn == pytest.approx(by_hand, rel=0.06 if structured else 0.01)


def test_gates_move_rate_times_as_fast(bert_dir):
    """A step of AdamW takes every gate lr · rate towards 0, also that of a whole matrix, and nothing else."""
    model = differing(bert_dir, penalty=1.0, rate=50.0)
    before = copy.deepcopy(model.state_dict())
    technique(model).of_weights(model).backward()
    slope = math.exp(-5) / (1 + math.exp(-5))**2  # of sigmoid at 5
    module = model.bert.bert_layers[0].interm_dense
    open_gates = module.weight.numel() / (1 + math.exp(-5))
    torch.testing.assert_close(module.weight_gate.grad, torch.full_like(module.weight, 50 * slope / (1 + math.exp(-5))))
    assert module.weight_group.grad.item() == pytest.approx(open_gates * slope, rel=1e-4)  # not times the rate
    AdamW(model.parameters(), lr=1e-3).step()
    for name, p in model.named_parameters():
        step = 1e-3 if name.endswith(("_gate", "_group")) else 0.0
        torch.testing.assert_close(before[name] - p, torch.full_like(p, step), rtol=1e-2, atol=1e-8)
    module, _, _, alpha = layer_of(model)
    assert alpha.mean().item() == pytest.approx(5.0 - 50 * 1e-3, abs=1e-3)


@BOTH
def test_the_penalty_prunes_and_the_report_counts_what_is_left(structured, bert_dir):
    def trained(penalty):
        model = differing(bert_dir, structured=structured, penalty=penalty, rate=200.0)
        batch, optimizer = a_batch("sst", bert_dir), AdamW(model.parameters(), lr=1e-2)
        step = TrainingStep(model, {"sst": TASK_LOSSES[TASKS["sst"].loss]}, optimizer, precision="fp32",
                            device=torch.device("cpu"))
        losses = [step([{"sst": part_of(batch)}])["sst"].item() for _ in range(20)]
        return model, losses
    shares = []
    for penalty in (0.0, 1e-3):
        model, losses = trained(penalty)
        assert losses[-1] < 0.6 * losses[0]
        model.eval()
        left = sum((module.weights()[name] != getattr(module, name)).sum().item()
                   for module in modules_of(model) for name in ("weight", "bias"))
        of = sum(module.get_parameter(name).numel() for module in modules_of(model) for name in ("weight", "bias"))
        shares.append(left / of)
        of_all = sum(p.numel() for name, p in model.bert.named_parameters() if not name.endswith(
            ("_delta", "_gate", "_group")))
        model.train()
        line = technique(model).report(model)
        assert line.startswith(f"diff: {left:,} of {of:,} weights") and f"{left / of_all:.2%} of the encoder's" in line
        assert all(module.training for module in modules_of(model))
    assert shares[1] < 0.1 < 0.7 < shares[0]  # the unused pooler has no difference


def test_the_report_is_of_the_model_that_is_kept(course_folder, monkeypatch, capsys):
    """An average of the weights is scored and kept: it has other gates than the last step."""
    flags = "--tasks sst --adapt diff:penalty=1e-4 --lr 1e-3 --batch_size 2 --epochs 4 --ema 0.8 --run_dir run"
    monkeypatch.setattr("sys.argv", ["multitask_classifier.py", *flags.split()])
    multitask_classifier.main()
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("diff: ")]
    lines = [json.loads(line) for line in (course_folder / "run" / "metrics.jsonl").read_text().splitlines()]
    scorings = [line for line in lines if line["kind"] == "score"]
    assert [line["reports"] for line in scorings] == [[line] for line in said] and len(set(said)) > 1

    saved = load_checkpoint("run/best.pt")
    model = MultitaskBERT(saved["model_config"])
    load_weights(model, saved)
    best = max(scorings, key=lambda line: line["score"])["reports"]
    assert best == [technique(model).report(model)] == json.loads((course_folder / "run" / "best.json").read_text())[
        "reports"]


def test_padding_changes_nothing_and_checkpoints_and_copies_keep_it(bert_dir):
    model = moved(differing(bert_dir)).eval()
    logits = [forward_of(model, a_batch("sst", bert_dir, extra)).logits for extra in (0, 3)]
    torch.testing.assert_close(*logits)
    plain = forward_of(tiny_model(bert_dir).eval(), a_batch("sst", bert_dir)).logits
    assert not torch.allclose(logits[0], plain, atol=1e-3)
    restored = differing(bert_dir).eval()
    restored.load_state_dict(model.state_dict())
    for same in (restored, copy.deepcopy(model)):
        assert forward_of(same, a_batch("sst", bert_dir)).logits.equal(logits[0])


def test_every_pass_draws_anew_and_gradient_checkpointing_draws_the_same_again(bert_dir):
    model, batch = moved(differing(bert_dir)), a_batch("sst", bert_dir)
    assert not forward_of(model, batch).logits.equal(forward_of(model, batch).logits)
    grads = []
    for checkpointing in (False, True):
        model.bert.config.gradient_checkpointing = checkpointing
        model.zero_grad()
        torch.manual_seed(1)
        total(model, dict(batch)).backward()
        grads.append(model.bert.bert_layers[0].out_dense.weight_delta.grad.clone())
    torch.testing.assert_close(*grads)


@BOTH
def test_the_loss_falls_in_20_steps_of_bf16_without_waiting(structured, bert_dir, monkeypatch):
    model, batch = differing(bert_dir, structured=structured), a_batch("sst", bert_dir)
    pack_attention(model)

    def loss():
        with torch.autocast("cpu", torch.bfloat16), no_waiting(monkeypatch):
            return total(model, batch) + technique(model).of_weights(model)
    losses = losses_of_20_steps(model, loss)
    assert losses[-1] < 0.6 * losses[0]


def test_beside_other_techniques(bert_dir):
    def kinds(*techniques):
        model = tiny_model(bert_dir)
        for technique in techniques:
            technique(model.bert)
        forward_of(model, a_batch("sst", bert_dir)).logits
        return [type(module).__name__ for module in model.bert.modules() if isinstance(module, Difference)]
    assert kinds(diff_pruning).count("DiffLinear") == 7
    assert kinds(lora, diff_pruning).count("DiffLinear") == 5
    assert kinds(diff_pruning, mixout).count("DiffLinear") == 7
    assert kinds(diff_pruning, lambda bert: adapters(bert, style="pfeiffer")).count("DiffLinear") == 7
    for pair, message in (((diff_pruning, lora), "name this one first"), ((mixout, diff_pruning), "nothing is left"),
                          ((bitfit, diff_pruning), "leave one"), ((diff_pruning, bitfit), "leave one"),
                          ((diff_pruning, diff_pruning), "nothing is left")):
        with pytest.raises(ValueError, match=message):
            kinds(*pair)
    with pytest.raises(ValueError, match="rate must be above 0"):
        from_spec("diff:rate=0", ADAPT)
