"""RMSNorm: its formula, LayerNorm where it recentres, the parameters it takes over, fp32, padding, training."""

import copy

import pytest
import torch
import torch.nn as nn

from bert import BertModel
from extensions.architecture.rmsnorm import RMSNorm, rmsnorm
from tests.helpers.architecture_cases import (
    check_checkpoint,
    check_learning,
    check_padding,
    disturb,
    parameters_of,
    plain_names,
    random_words,
    states,
    tiny_model,
    with_parts,
)


def layer_norm(dtype=torch.float64, eps=1e-12):
    """Return a layer norm over 8 features whose weights are none of its initial ones."""
    torch.manual_seed(0)
    return disturb(nn.LayerNorm(8, eps=eps, dtype=dtype))


def test_by_hand():
    norm = nn.LayerNorm(2, eps=1.0, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, 3.0]))
        norm.bias.copy_(torch.tensor([0.5, -1.0]))
    x = torch.tensor([1.0, 7.0], dtype=torch.float64)  # mean 4, mean square 25; recentred: -3, 3 and 9
    for recentre, bias, expected in ((False, False, [2 / 26**0.5, 21 / 26**0.5]),
                                     (False, True, [0.5 + 2 / 26**0.5, -1 + 21 / 26**0.5]),
                                     (True, True, [0.5 - 6 / 10**0.5, -1 + 9 / 10**0.5])):
        torch.testing.assert_close(RMSNorm(norm, recentre, bias)(x), torch.tensor(expected, dtype=torch.float64))


def test_as_torchs_rms_norm_in_float64_with_its_gradients():
    norm, x = layer_norm(), 3 + torch.randn(4, 5, 8, dtype=torch.float64)
    oracle = nn.RMSNorm(8, eps=norm.eps, dtype=torch.float64)
    oracle.load_state_dict({"weight": norm.weight})
    ours, inputs = RMSNorm(norm, False, False), [x.clone().requires_grad_() for _ in range(2)]
    for module, value in ((ours, inputs[0]), (oracle, inputs[1])):
        module(value).square().sum().backward()
    torch.testing.assert_close(ours(x), oracle(x))
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    torch.testing.assert_close(ours.weight.grad, oracle.weight.grad)
    assert not torch.allclose(ours(x), norm(x), atol=0.1)


def test_recentred_it_is_layer_norm(bert_dir):
    norm, x = layer_norm(), 3 + torch.randn(4, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(RMSNorm(norm, True, True)(x), norm(x))
    plain, model = disturb(tiny_model(bert_dir).bert), tiny_model(bert_dir).bert
    rmsnorm(model, recentre=True)
    disturb(model)
    torch.testing.assert_close(states(model), states(plain), rtol=1e-4, atol=1e-5)


def test_fp32_under_autocast():
    norm = RMSNorm(layer_norm(torch.float32), False, True)
    x = (1 + torch.randn(3, 8)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, norm(x.float()), rtol=0, atol=0)


def test_which_norms_and_parameters(bert_dir):
    plain = plain_names(bert_dir)
    before = tiny_model(bert_dir).bert
    own = {name: p for name, p in before.named_parameters()}
    rmsnorm(before)
    assert {name: p for name, p in before.named_parameters()}.keys() == plain
    assert all(p is own[name] for name, p in before.named_parameters())
    assert not any(type(module) is nn.LayerNorm for module in before.modules())
    rest = with_parts(bert_dir, lambda bert: rmsnorm(bert, embedding=False)).bert
    assert [name for name, module in rest.named_modules() if type(module) is nn.LayerNorm] == ["embed_layer_norm"]
    names, of_pretrain, frozen = parameters_of(bert_dir, lambda bert: rmsnorm(bert, bias=False))
    assert plain - names == {f"{norm}.bias" for norm in (
        "embed_layer_norm", "bert_layers.0.attention_layer_norm", "bert_layers.0.out_layer_norm")}
    assert names < plain and not of_pretrain and not frozen
    with pytest.raises(ValueError, match="nothing is left"):
        rmsnorm(before)


def test_with_the_bias_it_is_closer_to_the_pretrained_function():
    """The docstring's measurement on a few sentences' worth of random words."""
    bert = BertModel.from_pretrained("minilm")
    ids, mask = random_words()
    before, changes = states(bert, ids, mask), []
    for bias in (True, False):
        changed = copy.deepcopy(bert)
        rmsnorm(changed, bias=bias)
        changes.append(((states(changed, ids, mask) - before).norm() / before.norm()).item())
    assert 0.05 < changes[0] < 0.5 < changes[1]


def test_padding_checkpoints_and_training(bert_dir, monkeypatch):
    for options in ({}, {"recentre": True, "bias": False, "embedding": False}):
        def part(bert, options=options):
            rmsnorm(bert, **options)
        check_padding(bert_dir, part)
        check_checkpoint(bert_dir, part)
        check_learning(bert_dir, part, monkeypatch=monkeypatch)
