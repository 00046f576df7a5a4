"""BitFit and the heads alone: exactly these parameters move, and nothing else does."""

import re

import pytest
import torch

from engine.packed_attention import is_packable, pack_attention
from extensions import ADAPT
from extensions.architecture.glu import swiglu
from extensions.architecture.rmsnorm import rmsnorm
from extensions.specs import from_spec
from extensions.tuning.bitfit import PARTS, bitfit
from extensions.tuning.last_linear import last_linear
from extensions.tuning.lora import lora
from extensions.tuning.mixout import mixout
from extensions.tuning.prefix import prefix
from tests.helpers.fixtures_tiny import forward_of, losses_of_20_steps
from tests.helpers.regularizer_cases import COURSE_TASKS, a_batch, no_waiting, tiny_model, total

LAYER = "bert.bert_layers.0."
# The parameters of a layer that are biases, by the paper's names.
OF_A_LAYER = {"self_attention.query.bias", "self_attention.key.bias", "self_attention.value.bias",
              "attention_dense.bias", "attention_layer_norm.bias", "interm_dense.bias", "out_dense.bias",
              "out_layer_norm.bias"}
BIASES = {f"bert.bert_layers.0.{name}" for name in OF_A_LAYER} | {
    "bert.embed_layer_norm.bias", "bert.pooler_dense.bias"}


def heads_of(model):
    """Return the names of the parameters outside the encoder."""
    return {name for name, _ in model.named_parameters() if not name.startswith("bert.")}


def trained(model):
    """Return the names of the parameters that are trained, outside the heads."""
    return {name for name, p in model.named_parameters() if p.requires_grad} - heads_of(model)


@pytest.mark.parametrize("technique", [bitfit, last_linear])
@pytest.mark.parametrize("task", COURSE_TASKS)
def test_the_pretrained_function_the_same_keys_and_padding_changes_nothing(task, technique, bert_dir):
    plain, model = tiny_model(bert_dir), tiny_model(bert_dir)
    parameters = dict(model.named_parameters())
    technique(model.bert)
    assert all(parameters[name] is p for name, p in model.named_parameters())
    assert list(model.state_dict()) == list(plain.state_dict())
    assert is_packable(model.bert.bert_layers[0].self_attention)
    logits = [forward_of(model, a_batch(task, bert_dir, extra)).logits for extra in (0, 3)]
    assert logits[0].equal(forward_of(plain, a_batch(task, bert_dir)).logits)
    torch.testing.assert_close(*logits)


@pytest.mark.parametrize("targets, expected", [
    ("all", BIASES), ("query+intermediate", {f"{LAYER}self_attention.query.bias", f"{LAYER}interm_dense.bias",
                                             "bert.pooler_dense.bias"}),
    ("output", {f"{LAYER}out_dense.bias", "bert.pooler_dense.bias"}),
    ("attention", {f"{LAYER}attention_dense.bias", "bert.pooler_dense.bias"}),
    ("+".join(PARTS), BIASES - {"bert.embed_layer_norm.bias"})])
def test_trains_exactly_the_biases_of_its_targets(targets, expected, bert_dir):
    model = tiny_model(bert_dir)
    bitfit(model.bert, targets)
    assert trained(model) == expected
    assert all(p.requires_grad for name, p in model.named_parameters() if name in heads_of(model))


def test_last_linear_trains_the_heads_alone(bert_dir):
    model = tiny_model(bert_dir)
    last_linear(model.bert)
    assert not trained(model) and {n for n, p in model.named_parameters() if p.requires_grad} == heads_of(model)


@pytest.mark.parametrize("technique, moving", [(bitfit, BIASES - {"bert.pooler_dense.bias"}), (last_linear, set())])
def test_the_loss_falls_in_20_steps_of_bf16_and_nothing_else_moves(technique, moving, bert_dir, monkeypatch):
    model, batch = tiny_model(bert_dir), a_batch("sst", bert_dir)
    technique(model.bert)
    pack_attention(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    def loss():
        with torch.autocast("cpu", torch.bfloat16), no_waiting(monkeypatch):
            return total(model, batch)
    losses = losses_of_20_steps(model, loss)
    assert losses[-1] < 0.6 * losses[0]
    moved = {name for name, p in model.named_parameters() if not p.equal(before[name])}
    # Mean pooling does not use the pooler. A bias of the keys adds the same to all scores of a query: it does nothing.
    idle = {f"{LAYER}self_attention.key.bias"}
    assert moved - heads_of(model) - idle == moving - idle


def test_the_biases_gradient_is_that_of_full_fine_tuning(bert_dir):
    gradients = []
    for technique in (None, bitfit):
        model = tiny_model(bert_dir)
        if technique:
            technique(model.bert)
        total(model, a_batch("sst", bert_dir)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name in BIASES - {"bert.pooler_dense.bias"}:
        torch.testing.assert_close(gradients[0][name], gradients[1][name])
    assert gradients[0][f"{LAYER}out_dense.weight"] is not None and gradients[1][f"{LAYER}out_dense.weight"] is None


@pytest.mark.parametrize("other, added", [(lora, {"lora_A", "lora_B"}), (prefix, {"prefix.key", "prefix.value"}),
                                          (mixout, set())])
@pytest.mark.parametrize("order", [1, -1])
def test_with_another_technique_in_either_order(order, other, added, bert_dir):
    model = tiny_model(bert_dir)
    for technique in (bitfit, other)[::order]:
        technique(model.bert)
    more = trained(model) - BIASES
    assert BIASES <= trained(model)
    assert {re.sub(r".*self_attention\.((query|value)\.)?", "", name) for name in more} == added


def test_a_gated_feed_forward_has_its_biases_in_a_part_of_that_name(bert_dir):
    model = tiny_model(bert_dir)
    swiglu(model.bert)
    bitfit(model.bert, targets="intermediate")
    layer = "bert.bert_layers.0.interm_dense"
    # What has not been pretrained is trained whole.
    assert trained(model) == {f"{layer}.gate.bias", f"{layer}.up.bias", f"{layer}.up.weight", "bert.pooler_dense.bias"}


def test_norms_without_a_bias_and_wrong_targets_are_named(bert_dir):
    model = tiny_model(bert_dir)
    rmsnorm(model.bert, bias=False)
    bitfit(model.bert)
    assert trained(model) == {name for name in BIASES if "layer_norm" not in name}
    with pytest.raises(ValueError, match="query.output-norm: the encoder has no bias of out_layer_norm any more"):
        bitfit(model.bert, targets="query+output-norm")
    for targets in ("bias", "query+keys", "all+query"):
        with pytest.raises(ValueError, match="targets must be all, or words of query, key"):
            from_spec(f"bitfit:targets={targets}", ADAPT)
