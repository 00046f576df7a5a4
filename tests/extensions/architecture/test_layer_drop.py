"""LayerDrop and removed layers: what is left out and how often, the same when repeated, parameters, training."""

from functools import partial

import pytest
import torch

from extensions import ADAPT
from extensions.architecture.extra_attention import extra_attention
from extensions.architecture.layer_drop import Droppable, layer_drop, remove_layers
from extensions.architecture.pals import pals
from extensions.architecture.task_layers import task_layers
from extensions.specs import from_spec
from tests.helpers.architecture_cases import (
    IDS,
    MASK,
    a_batch,
    check_checkpoint,
    check_learning,
    check_padding,
    disturb,
    no_waiting,
    parameters_of,
    plain_names,
    states,
    tiny_model,
    total,
    with_parts,
)
from tests.helpers.fixtures_tiny import tiny_bert_dir


@pytest.fixture(scope="module")
def deep_dir(tmp_path_factory):
    """Return the directory of a tiny BERT of 5 layers."""
    return str(tiny_bert_dir(tmp_path_factory.mktemp("deep"), hidden_size=24, num_attention_heads=2,
                             num_hidden_layers=5))


def output_without(bert, dropped):
    """Return the encoder's output with the layers of these indices left out."""
    hidden_states = bert.embed(IDS)
    for i, layer in enumerate(bert.bert_layers):
        if i not in dropped:
            hidden_states = layer(hidden_states, torch.where(MASK[:, None, None, :] == 1, 0.0, -10000.0))
    return hidden_states


def test_nothing_changes_in_evaluation_or_with_p_0_and_the_keys_stay(deep_dir):
    plain, model = disturb(tiny_model(deep_dir)).bert, disturb(with_parts(deep_dir, partial(layer_drop, p=0.5))).bert
    assert states(model).equal(states(plain))
    assert model.state_dict().keys() == plain.state_dict().keys()
    never = disturb(with_parts(deep_dir, partial(layer_drop, p=0.0))).bert.train()
    assert never(IDS, MASK)["last_hidden_state"].equal(plain.train()(IDS, MASK)["last_hidden_state"])
    assert parameters_of(deep_dir, layer_drop) == (plain_names(deep_dir), set(), set())


@torch.no_grad()
def test_each_layer_is_left_out_as_often_as_p_says(deep_dir):
    """Every pass is the plain encoder without some of its layers, and each of them is missing in about 30 %."""
    plain = disturb(tiny_model(deep_dir)).bert.eval()
    subsets = [{i for i in range(5) if bits >> i & 1} for bits in range(32)]
    possible = torch.stack([output_without(plain, dropped).flatten() for dropped in subsets])  # (32, N)
    model = disturb(with_parts(deep_dir, partial(layer_drop, p=0.3))).bert.train()
    torch.manual_seed(0)
    counts, passes = torch.zeros(5), 300
    for _ in range(passes):
        found = (possible - model(IDS, MASK)["last_hidden_state"].flatten()).abs().amax(dim=1)
        assert found.min() < 1e-4 and (found < 1e-3).sum() == 1
        for i in subsets[found.argmin()]:
            counts[i] += 1
    assert ((counts / passes - 0.3).abs() < 0.09).all()


def test_the_gradient_of_a_layer_left_out_is_zero(deep_dir):
    model = with_parts(deep_dir, partial(layer_drop, p=0.5))
    seen = set()
    for seed in range(6):
        torch.manual_seed(seed)
        model.zero_grad()
        total(model, a_batch("sst", deep_dir)).backward()
        for layer in model.bert.bert_layers:
            moved = {p.grad.abs().max().item() > 0 for name, p in layer.named_parameters() if "key.bias" not in name}
            assert len(moved) == 1
            seen |= moved
    assert seen == {True, False}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_repeated_from_the_generators_state(checkpointing, deep_dir, monkeypatch):
    """A resumed run draws what the first would have; a layer that is computed again is left out again."""
    model, batch = with_parts(deep_dir, partial(layer_drop, p=0.5), dropout=0.1), a_batch("sst", deep_dir)
    model.bert.config.gradient_checkpointing = checkpointing
    torch.manual_seed(3)
    total(model, batch)
    state, found = torch.random.get_rng_state(), []
    for again in (False, True):
        torch.random.set_rng_state(state)
        model.bert.config.gradient_checkpointing = checkpointing and again
        with no_waiting(monkeypatch):
            loss = total(model, batch)
        model.zero_grad()
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.bert.parameters() if p.grad is not None)])
    torch.testing.assert_close(found[1], found[0])


def test_with_layers_of_other_techniques(deep_dir):
    for below in (partial(pals, size=8, heads=2), task_layers, extra_attention):
        model = with_parts(deep_dir, below, partial(layer_drop, p=0.5))
        assert all(isinstance(layer, Droppable) for layer in model.bert.bert_layers)
        assert total(model, a_batch("sst", deep_dir)).isfinite()
    for above in (pals, task_layers):
        with pytest.raises(ValueError, match="plain layer"):
            with_parts(deep_dir, layer_drop, above)
    with pytest.raises(ValueError, match="name it once"):
        with_parts(deep_dir, layer_drop, layer_drop)
    with pytest.raises(ValueError, match="p must be at least 0 and below 1"):
        from_spec("layer-drop:p=1.0", ADAPT)


@pytest.mark.parametrize("keep, kept", [("first-2", {0, 1}), ("mid-2", {1, 2}), ("last-3", {2, 3, 4}),
                                        ("alternate", {0, 2, 4}), ("first-4", {0, 1, 2, 3})])
def test_removed_layers(keep, kept, deep_dir):
    plain, model = (disturb(tiny_model(deep_dir)).bert.eval() for _ in range(2))
    own = list(model.bert_layers)
    remove_layers(model, keep=keep)
    assert [own.index(layer) for layer in model.bert_layers] == sorted(kept)
    expected = output_without(plain, set(range(5)) - kept)
    torch.testing.assert_close(model.eval()(IDS, MASK)["last_hidden_state"], expected)
    names = {name for name in plain_names(deep_dir) if not name.startswith("bert_layers.")}
    assert {name for name, _ in model.named_parameters() if "bert_layers" not in name} == names
    assert {name.split(".")[1] for name, _ in model.named_parameters() if "bert_layers" in name} == {
        str(i) for i in range(len(kept))}
    assert model.config.num_hidden_layers == 5


def test_another_word_is_refused(deep_dir):
    for keep in ("first-6", "last-5"):
        with pytest.raises(ValueError, match=f"^keep={keep}: "):
            with_parts(deep_dir, from_spec(f"remove-layers:keep={keep}", ADAPT))
    for keep in ("first-0", "odd", "all-2", "all"):
        with pytest.raises(ValueError, match=f"keep={keep}: keep must be alternate, first-N, mid-N or last-N"):
            from_spec(f"remove-layers:keep={keep}", ADAPT)


@pytest.mark.parametrize("part", [partial(layer_drop, p=0.3), partial(remove_layers, keep="alternate")])
def test_padding_checkpoints_and_training(part, deep_dir, monkeypatch):
    check_padding(deep_dir, part)
    check_checkpoint(deep_dir, part)
    check_learning(deep_dir, part, monkeypatch=monkeypatch, factor=0.9)
