"""Frozen layers: which they are, that no optimizer moves them, and that they thaw from the top, also after a resume."""

import copy
from types import SimpleNamespace

import pytest

from engine.fused_adamw import FusedAdamW
from extensions import ADAPT, GRADIENTS
from extensions.encoder import techniques_of
from extensions.specs import from_spec
from extensions.tuning.freezing import freeze_layers, gradual_unfreezing
from extensions.tuning.lora import lora
from multitask_classifier import MultitaskBERT
from optimizer import AdamW
from tests.helpers.fixtures_tiny import forward_of, losses_of_20_steps, tiny_bert_dir
from tests.helpers.regularizer_cases import a_batch, tiny_model, total

EMBEDDINGS = {"word_embedding", "pos_embedding", "tk_type_embedding", "embed_layer_norm"}
L = 3


@pytest.fixture(scope="module")
def deep_dir(tmp_path_factory):
    """Return the directory, a string, of a random BERT of three layers."""
    return str(tiny_bert_dir(tmp_path_factory.mktemp("deep"), hidden_size=24, num_attention_heads=2,
                             num_hidden_layers=L))


def parts(model, wanted=True):
    """Return the parts of the encoder, such as `layer 1`, that are trained (or not); none is so in part."""
    def part(name):
        name = name.split(".")
        return f"layer {name[1]}" if name[0] == "bert_layers" else name[0]
    found = {flag: {part(name) for name, p in model.bert.named_parameters() if p.requires_grad == flag}
             for flag in (True, False)}
    assert not found[True] & found[False]
    assert all(p.requires_grad for name, p in model.named_parameters() if not name.startswith("bert."))
    return found[wanted]


@pytest.mark.parametrize("options, frozen", [
    ({}, {"layer 0", "layer 1", "layer 2"} | EMBEDDINGS), ({"layers": "first-1"}, {"layer 0"} | EMBEDDINGS),
    ({"layers": "last-2", "embeddings": False}, {"layer 1", "layer 2"}), ({"layers": "mid-1", "embeddings": False},
                                                                        {"layer 1"}),
    ({"layers": "none"}, EMBEDDINGS)])
def test_freezes_exactly_the_layers_named(options, frozen, deep_dir):
    plain, model = tiny_model(deep_dir), tiny_model(deep_dir)
    freeze_layers(model.bert, **options)
    assert parts(model, wanted=False) == frozen
    for extra in (0, 3):  # the same function, padding or not
        batch = a_batch("sst", deep_dir, extra)
        assert forward_of(model, batch).logits.equal(forward_of(plain, batch).logits)
    assert list(model.state_dict()) == list(plain.state_dict())


def test_frozen_layers_stay_in_20_steps_that_lower_the_loss(deep_dir):
    model, batch = tiny_model(deep_dir), a_batch("sst", deep_dir)
    freeze_layers(model.bert, layers="first-2")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = losses_of_20_steps(model, lambda: total(model, batch))
    assert losses[-1] < 0.6 * losses[0]
    for name, p in model.bert.bert_layers.named_parameters():
        unused = name.endswith("key.bias")  # the same for all scores of a query
        assert unused or p.equal(before[f"bert.bert_layers.{name}"]) == (name[0] in "01"), name


def test_freezing_nothing_and_wrong_layers_are_named(deep_dir):
    for options, message in (("layers=none,embeddings=false", "freezes nothing"),
                             ("layers=first-4", "first-4: choose all"), ("layers=top", "must be all, none, first-N")):
        with pytest.raises(ValueError, match=message):
            from_spec(f"freeze:{options}", ADAPT)(tiny_model(deep_dir).bert)


def thawing(bert_dir, **options):
    """Return a model with gradual unfreezing, and what tells it of an epoch's start, as the engine does."""
    model = tiny_model(bert_dir)
    gradual_unfreezing(model.bert, **options)
    [technique] = techniques_of(model, "start_epoch")
    return model, technique.start_epoch


@pytest.mark.parametrize("per_epoch, trained", [
    (1, [{"layer 2"}, {"layer 2", "layer 1"}, {"layer 2", "layer 1", "layer 0"},
         {"layer 2", "layer 1", "layer 0"} | EMBEDDINGS]),
    (2, [{"layer 2", "layer 1"}, {"layer 2", "layer 1", "layer 0"} | EMBEDDINGS])])
def test_thaws_from_the_top_and_right_at_any_epoch(per_epoch, trained, deep_dir):
    model, start_epoch = thawing(deep_dir, per_epoch=per_epoch)
    assert not parts(model, wanted=False)  # an optimizer is made of them all
    for epoch, expected in enumerate([*trained, trained[-1]]):
        start_epoch(epoch)
        assert parts(model) == expected | {"pooler_dense"}
        resumed, start_there = thawing(deep_dir, per_epoch=per_epoch)
        start_there(epoch)
        assert parts(resumed) == expected | {"pooler_dense"}
    batch = a_batch("sst", deep_dir)
    assert forward_of(model, batch).logits.equal(forward_of(tiny_model(deep_dir), batch).logits)


@pytest.mark.parametrize("kind", [AdamW, FusedAdamW])
def test_an_optimizer_made_before_moves_what_is_thawed_alone(kind, deep_dir):
    model, start_epoch = thawing(deep_dir)
    optimizer, steps, losses = kind(model.parameters(), lr=2e-3, weight_decay=0.1), {}, []
    for epoch in range(L + 2):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        start_epoch(epoch)
        for _ in range(2):
            optimizer.zero_grad(set_to_none=True)
            loss = total(model, a_batch("sst", deep_dir))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        for name, p in model.bert.named_parameters():
            moved = p.requires_grad and not name.startswith("pooler_dense")  # which mean pooling does not use
            assert p.equal(before[f"bert.{name}"]) != moved, (epoch, name)
            steps[name] = steps.get(name, 0) + 2 * moved
            assert (optimizer.state[p]["step"] if p in optimizer.state else 0) == steps[name], (epoch, name)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", ["pcgrad", "gradvac", "cagrad"])
def test_gradients_by_task(name, deep_dir):
    model, start_epoch = thawing(deep_dir)
    params, gradient = list(model.parameters()), GRADIENTS[name]()
    start_epoch(0)
    gradient.backward({task: total(model, a_batch(task, deep_dir)) for task in ("sst", "sts")}, params)
    gradient.messages(params)
    gradient.combine(params)
    assert {name for name, p in model.bert.named_parameters() if p.grad is not None} == {
        name for name, _ in model.bert.named_parameters() if name.startswith("bert_layers.2.")}


@pytest.mark.parametrize("order", [1, -1])
def test_what_other_techniques_freeze_is_never_thawed(order, deep_dir):
    def with_lora(bert):
        lora(bert, rank=2, targets="query")
    model = tiny_model(deep_dir)
    for technique in (gradual_unfreezing, with_lora)[::order]:
        technique(model.bert)
    model = copy.deepcopy(model)  # its techniques are then the copy's
    [technique] = techniques_of(model, "start_epoch")
    for epoch in range(L + 2):
        technique.start_epoch(epoch)
        assert {name for name, p in model.bert.named_parameters() if p.requires_grad} == {
            f"bert_layers.{i}.self_attention.query.lora_{part}" for part in "AB" for i in range(L)
            if i >= L - 1 - epoch}


def test_wrong_options_are_named(deep_dir):
    with pytest.raises(ValueError, match="choose --option finetune"):
        gradual_unfreezing(MultitaskBERT(SimpleNamespace(
            pretrained=deep_dir, option="pretrain", hidden_dropout_prob=0.0)).bert)
