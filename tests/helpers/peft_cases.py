"""What the tests of LoRA, DoRA, (IA)³ and adapters share: small encoders, Hugging Face's peft beside them, claims.

Legend of the shape comments:  B batch · T tokens · C hidden size
"""

import copy

import pytest
import torch
import torch.nn.functional as F

from base_bert import to_hugging_face
from bert import BertModel
from engine.fast_dropout import use_fast_dropout
from engine.packed_attention import pack_attention
from extensions.tuning._linears import merge, unmerge
from tasks import COURSE_TASKS
from tests.helpers.fixtures_tiny import losses_of_20_steps, tiny_bert_dir
from tests.helpers.oracle import run_oracle
from tests.helpers.regularizer_cases import a_batch, no_waiting, tiny_model, total

IDS = torch.tensor([[101, 950, 960, 102, 0], [101, 940, 930, 955, 102]])
MASK = (IDS != 0).long()

# our name of a parameter -> peft's name below the layer, and its shape
PEFT = {"lora_A": ("lora_A.default.weight", None), "lora_B": ("lora_B.default.weight", None),
        "magnitude": ("lora_magnitude_vector.default.weight", None), "ia3_l": ("ia3_l.default", "column or row")}
ORACLE = """
import peft, torch, transformers
model = transformers.BertModel.from_pretrained(folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
model = peft.get_peft_model(model, getattr(peft, kind)(**options)).train()
params = {name.removeprefix("base_model.model."): p for name, p in model.named_parameters() if p.requires_grad}
assert params.keys() == weights.keys(), (params.keys(), weights.keys())
for name, p in params.items():
    p.data.copy_(weights[name].reshape(p.shape))
optimizer = torch.optim.AdamW(params.values(), lr=1e-2)
output = model(ids, attention_mask=mask).last_hidden_state
(output * direction).sum().backward()
grads = {name: p.grad.clone() for name, p in params.items()}
optimizer.step()
result = {"output": output.detach(), "grads": grads, "stepped": {name: p.detach() for name, p in params.items()},
          "after": model(ids, attention_mask=mask).last_hidden_state.detach()}
"""


def lively(folder, layers):
    """Write a random BERT of width 24 whose weights are ten times as large as usual, so that each part counts."""
    tiny_bert_dir(folder, hidden_size=24, num_hidden_layers=layers, num_attention_heads=2)
    bert = BertModel.from_pretrained(str(folder))
    with torch.no_grad():
        for linear in filter(lambda module: isinstance(module, torch.nn.Linear), bert.modules()):
            linear.weight.mul_(10)
            linear.bias.uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(1))
    bert.save_pretrained(str(folder))
    return str(folder)


@pytest.fixture(scope="session")
def one_layer(tmp_path_factory):
    """Return the directory, a string, of a random BERT of width 24 with one layer."""
    return lively(tmp_path_factory.mktemp("one"), 1)


@pytest.fixture(scope="session")
def four_layers(tmp_path_factory):
    """Return the directory, a string, of a random BERT of width 24 with four layers."""
    return lively(tmp_path_factory.mktemp("four"), 4)


def small_bert(folder, *techniques, dropout=0.0):
    """Return the encoder of a folder in training mode, with techniques (functions of it) applied in this order."""
    bert = BertModel.from_pretrained(folder, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    torch.manual_seed(0)
    for technique in techniques:
        technique(bert)
    return bert.train()


def trained(module, frozen=False):
    """Move what training would move, the same at every call, so that nothing is 0 or 1 any more; return the module."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in module.parameters():
            if p.requires_grad or frozen:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return module


def trainable_names(module):
    """Return the names of the parameters that training updates, a set."""
    return {name for name, p in module.named_parameters() if p.requires_grad}


def same_as_peft(bert, folder, kind, **options):
    """See that outputs, gradients and one step of AdamW are those of peft's technique `kind` on the same weights."""
    def theirs(name):
        name, _, last = to_hugging_face(name).rpartition(".")
        return f"{name}.{PEFT[last][0]}"

    ours = {theirs(name): p for name, p in trained(bert).named_parameters() if p.requires_grad}
    direction = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(3))  # (B, T, C)
    expected = run_oracle(ORACLE, folder=folder, kind=kind, options=options, ids=IDS, mask=MASK, direction=direction,
                          weights={name: p.detach().clone() for name, p in ours.items()})
    optimizer = torch.optim.AdamW(ours.values(), lr=1e-2)
    output = bert(IDS, MASK)["last_hidden_state"]
    (output * direction).sum().backward()
    torch.testing.assert_close(output, expected["output"], rtol=0, atol=1e-5)
    for name, p in ours.items():
        torch.testing.assert_close(p.grad, expected["grads"][name].reshape(p.shape), rtol=1e-4, atol=1e-5)
    assert all(p.grad is None for p in bert.parameters() if not p.requires_grad)
    optimizer.step()
    for name, p in ours.items():
        torch.testing.assert_close(p.detach(), expected["stepped"][name].reshape(p.shape), rtol=0, atol=1e-5)
    torch.testing.assert_close(bert(IDS, MASK)["last_hidden_state"], expected["after"], rtol=0, atol=2e-5)


@torch.no_grad()
def nothing_changes_until_training(folder, technique):
    """See that the outputs are the plain encoder's at first, those of the tasks too, and are others after training."""
    plain, bert = small_bert(folder)(IDS, MASK), small_bert(folder, technique)
    torch.testing.assert_close(bert(IDS, MASK), plain, rtol=0, atol=1e-6)
    changed = trained(bert)(IDS, MASK)["last_hidden_state"]
    assert (changed - plain["last_hidden_state"]).abs().amax() > 1e-2


def only_adds(folder, technique, endings):
    """See that the loaded parameters stay the same tensors under the same names, beside new ones with such endings."""
    bert = small_bert(folder)
    before = dict(bert.named_parameters())
    technique(bert)
    after = dict(bert.named_parameters())
    assert all(after[name] is before[name] for name in before)
    assert after.keys() > before.keys() and all(name.endswith(endings) for name in after.keys() - before.keys())


@torch.no_grad()
def merges(folder, technique):
    """See that merging changes no output and unmerging leaves no trace, and what is refused in between."""
    bert = trained(small_bert(folder, technique)).eval()
    before, output = {name: tensor.clone() for name, tensor in bert.state_dict().items()}, bert(IDS, MASK)
    with pytest.raises(ValueError, match="the model is not merged"):
        unmerge(bert)
    with torch.autocast("cpu", torch.bfloat16):
        merge(bert)
    torch.testing.assert_close(bert(IDS, MASK), output, rtol=0, atol=1e-5)
    plain = small_bert(folder).eval()
    assert not torch.allclose(plain(IDS, MASK)["last_hidden_state"], output["last_hidden_state"], atol=1e-2)
    plain.load_state_dict(bert.state_dict())  # what is merged is a plain BERT
    assert plain(IDS, MASK)["last_hidden_state"].equal(bert(IDS, MASK)["last_hidden_state"])
    with pytest.raises(ValueError, match="merged already"):
        merge(bert)
    with pytest.raises(RuntimeError, match="is merged: unmerge"):
        bert.load_state_dict(before)
    with pytest.raises(RuntimeError, match="unmerge.model. before training"):
        bert.train()(IDS, MASK)
    unmerge(bert.eval())
    assert bert.state_dict().keys() == before.keys()
    assert all(tensor.equal(before[name]) for name, tensor in bert.state_dict().items())
    assert bert(IDS, MASK)["last_hidden_state"].equal(output["last_hidden_state"])
    with pytest.raises(ValueError, match="nothing here can be merged"):
        merge(plain)


@torch.no_grad()
def comes_back(folder, technique):
    """See that a state_dict restores the model onto one of other weights, as checkpoints do; and deep copies."""
    bert = trained(small_bert(folder, technique), frozen=True)
    fresh = BertModel(bert.config)
    technique(fresh)
    assert trainable_names(fresh) == trainable_names(bert)
    fresh.load_state_dict(bert.state_dict())
    for other in (fresh.train(), copy.deepcopy(bert)):
        assert other(IDS, MASK)["last_hidden_state"].equal(bert(IDS, MASK)["last_hidden_state"])


def padding_changes_nothing(folder, technique):
    """See that columns of padding change no task's loss, and no gradient."""
    for task in COURSE_TASKS:
        values = []
        for extra in (0, 3):
            model = tiny_model(folder)
            technique(model.bert)
            loss = total(trained(model), a_batch(task, folder, extra))
            loss.backward()
            values.append((loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
        torch.testing.assert_close(*values, rtol=1e-4, atol=1e-5)


def learns(folder, technique, monkeypatch):
    """See that the technique tells two texts apart in 20 steps, in bf16 with what makes the CPU fast, not waiting."""
    bert = small_bert(folder, technique)
    bert.config.gradient_checkpointing = True
    pack_attention(bert)
    use_fast_dropout(bert)
    # In bf16 the fast dropout reads a number on the host; it is for the CPU alone.
    monkeypatch.setattr("engine.fast_dropout.multiplier", lambda x, p: F.dropout(torch.ones_like(x), p))
    frozen = {name: p.clone() for name, p in bert.named_parameters() if not p.requires_grad}
    head = torch.randn(24, 2, generator=torch.Generator().manual_seed(5))

    def loss():
        with torch.autocast("cpu", torch.bfloat16), no_waiting(monkeypatch):
            return F.cross_entropy(bert(IDS, MASK)["last_hidden_state"][:, 0] @ head, torch.tensor([0, 1]))
    losses = losses_of_20_steps(bert, loss)
    assert losses[-1] < 0.6 * losses[0], losses
    assert all(bert.get_parameter(name).equal(p) for name, p in frozen.items())
    return bert
