"""Attention back-ends: equal outputs and gradients, the kernel that was asked for, one line for what is not there."""

import copy
import sys

import pytest
import torch
from torch.nn.attention import SDPBackend

import classifier
import multitask_classifier
from engine.attention_backends import BACKENDS, KERNELS, admits, use_attention_backend
from engine.fast_dropout import use_fast_dropout
from engine.loop import fit
from engine.packed_attention import pack_attention
from files.errors import UserError
from tests.helpers.fixtures_tiny import forward_of, losses_of_20_steps
from tests.helpers.regularizer_cases import CASES, a_batch, tiny_model, total


def moved(model):
    """Return the model with its biases and norms drawn anew: those of a fresh one are 0 and 1."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.bert.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model


def a_model(bert_dir, adapt=(), dropout=0.0, packed=False, **more):
    """Return a tiny model with techniques in its encoder, the same at every call."""
    model = tiny_model(bert_dir, dropout, **more)
    for technique in adapt:
        torch.manual_seed(1)
        technique(model.bert)
    if packed:
        pack_attention(model)
    return moved(model)


def compare(plain, other, batch):
    """Assert that two models give equal logits, encodings and gradients; return the other's gradients."""
    for model in (plain, other):
        model.zero_grad()
        total(model, dict(batch)).backward()
    torch.testing.assert_close(forward_of(other, batch).logits, forward_of(plain, batch).logits, rtol=0, atol=1e-6)
    grads = {name: p.grad for name, p in other.named_parameters()}
    for name, p in plain.named_parameters():
        assert (p.grad is None) == (grads[name] is None)
        if p.grad is not None:
            torch.testing.assert_close(grads[name], p.grad, rtol=1e-5, atol=1e-6, msg=name)
    return grads


@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "efficient"])
@pytest.mark.parametrize("task, pair_encoding", CASES)
def test_outputs_and_gradients_are_those_of_auto(name, task, pair_encoding, bert_dir):
    plain = a_model(bert_dir, pair_encoding=pair_encoding)
    for packed in (False, True):
        other = a_model(bert_dir, packed=packed, pair_encoding=pair_encoding)
        use_attention_backend(other, name, "cpu")
        assert list(other.state_dict()) == list(plain.state_dict())
        compare(plain, other, a_batch(task, bert_dir, extra=3))


def test_checkpointing_copies_and_saved_weights(bert_dir):
    batch = a_batch("sst", bert_dir, extra=2)
    for name in ("math", "flash", "unpadded"):
        plain, other = a_model(bert_dir), a_model(bert_dir)
        use_attention_backend(other, name, "cpu")
        other.load_state_dict(plain.state_dict())
        expected = compare(plain, other, batch)
        other = copy.deepcopy(other)
        other.bert.config.gradient_checkpointing = True
        for key, grad in compare(plain, other, batch).items():
            torch.testing.assert_close(grad, expected[key], msg=key)


def test_a_kernel_is_used_where_it_was_asked_for(bert_dir, monkeypatch):
    used, attend = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda *args: (
        used.append(torch.nn.attention._cur_sdpa_kernel_backends()), attend(*args))[1])
    batch = a_batch("sst", bert_dir)
    for name, kernel in KERNELS.items():
        model = a_model(bert_dir)
        try:
            said = use_attention_backend(model, name, "cpu")
        except UserError:
            assert name == "efficient"
            continue
        used.clear()
        forward_of(model, batch).logits
        assert used == [[kernel]] and said == f"attention by {name}"
    assert set(torch.nn.attention._cur_sdpa_kernel_backends()) >= {SDPBackend.MATH, SDPBackend.FLASH_ATTENTION}


@pytest.mark.parametrize("script", [classifier, multitask_classifier], ids=lambda script: script.__name__)
def test_predictions_use_it_too(script, course_folder, monkeypatch):
    used, attend = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda *args: (
        used.append(torch.nn.attention._cur_sdpa_kernel_backends()), attend(*args))[1])
    only = ["--dataset", "sst"] if script is classifier else ["--tasks", "sts"]
    monkeypatch.setattr(sys, "argv", [script.__name__, *only, "--option", "finetune", "--max_steps", "1", "--precision",
                                      "fp32", "--attention_backend", "math"])
    monkeypatch.setattr(script, "fit", lambda *args: (fit(*args), used.clear())[0])
    script.main()
    assert used and all(kernels == [SDPBackend.MATH] for kernels in used)


def test_what_torch_has_on_the_cpu_and_what_is_said_of_the_rest(bert_dir):
    state = torch.random.get_rng_state()
    for dtype in (torch.float32, torch.bfloat16):
        for masked in (True, False):
            for dropout, there in ((0.0, {"math", "flash"}), (0.1, {"math"})):
                assert {kernel for kernel in KERNELS if admits(kernel, "cpu", dtype, masked, dropout)} == there
    assert torch.random.get_rng_state().equal(state)
    with pytest.raises(UserError, match="flash: torch has none for float32 on cpu with a mask and dropout; without "
                                        "dropout of attention it is there. Choose auto, math or unpadded$"):
        use_attention_backend(a_model(bert_dir, dropout=0.1), "flash", "cpu")
    with pytest.raises(UserError, match="efficient: .* bfloat16 on cpu with a mask. Choose auto, math, flash or unpad"):
        use_attention_backend(a_model(bert_dir), "efficient", "cpu", torch.bfloat16)
    with pytest.raises(UserError, match="falsh: choose one of auto, math"):
        use_attention_backend(a_model(bert_dir), "falsh", "cpu")
    assert use_attention_backend(a_model(bert_dir), "auto", "cpu") == "attention by math or flash, as torch chooses"


@pytest.mark.parametrize("name", ["math", "unpadded"])
def test_the_loss_falls_in_20_steps_of_bf16_with_dropout(name, bert_dir):
    model, batch = a_model(bert_dir, dropout=0.1, packed=True), a_batch("sst", bert_dir, extra=3)
    use_fast_dropout(model)
    use_attention_backend(model, name, "cpu", torch.bfloat16)

    def loss():
        with torch.autocast("cpu", torch.bfloat16):
            return total(model, batch)
    losses = losses_of_20_steps(model, loss)
    assert losses[-1] < 0.6 * losses[0]
