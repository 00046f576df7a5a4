"""What the tests of the encoder's other parts share: tiny models with parts replaced, and what each must hold."""

from contextlib import nullcontext
from functools import partial
from zlib import crc32

import torch

from bert import BertModel, BertSelfAttention
from engine.packed_attention import pack_attention
from extensions.architecture.attention_heads import mha, mqa
from extensions.architecture.glu import geglu, gelu, swiglu
from extensions.architecture.positions import alibi, relative
from extensions.architecture.rmsnorm import rmsnorm
from extensions.architecture.rotary import rotary
from extensions.encoder import freeze
from tests.helpers.fixtures_tiny import losses_of_20_steps
from tests.helpers.regularizer_cases import a_batch, no_waiting, reached, tiny_model, total
from utils import get_extended_attention_mask

# What --norm, --ffn, --attention and --positions may name besides what is loaded.
NORM = (rmsnorm,)
FFN = (geglu, partial(swiglu, width=40), partial(gelu, width=40))
ATTENTION = (partial(mha, heads=6), mqa)
POSITION = (relative, partial(relative, by="clipped", largest=3), rotary, alibi)
IDS = torch.tensor([[101, 950, 960, 102, 0], [101, 940, 930, 955, 102]])
MASK = (IDS != 0).long()


def with_parts(bert_dir, *parts, option="finetune", dropout=0.0):
    """Return a tiny model whose encoder each of the parts, functions of an encoder, has changed."""
    model = tiny_model(bert_dir, dropout, option=option)
    for part in parts:
        part(model.bert)
    return model


def disturb(module, scale=0.3):
    """Move every parameter, one of the same name the same way whatever else there is; return the module."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            name = name.removeprefix("bert.").replace(".gate.", ".")
            p.add_(scale * torch.randn(p.shape, generator=torch.Generator().manual_seed(crc32(name.encode()))))
    return module


def random_words():
    """Return ids (4, 12) of the words of bert-base-uncased's vocabulary, and their mask."""
    return torch.randint(2000, 20000, (4, 12), generator=torch.Generator().manual_seed(0)), torch.ones(4, 12).long()


@torch.no_grad()
def states(bert, ids=IDS, mask=MASK):
    """Return the last hidden states of the real tokens, (N, C), in evaluation mode."""
    return bert.eval()(ids, mask)["last_hidden_state"][mask.bool()]


def parameters_of(bert_dir, *parts):
    """Return names of the encoder's parameters: (all, those trained under --option pretrain, those after freeze)."""
    bert, frozen, after = (with_parts(bert_dir, *parts, option=option).bert
                           for option in ("finetune", "pretrain", "finetune"))
    freeze(after)
    return ({name for name, _ in bert.named_parameters()},
            {name for name, p in frozen.named_parameters() if p.requires_grad},
            {name for name, p in after.named_parameters() if p.requires_grad})


def plain_names(bert_dir):
    """Return the names of a plain encoder's parameters."""
    return parameters_of(bert_dir)[0]


def check_padding(bert_dir, *parts):
    """Assert that more padding, and another text in the batch, change no state of a real token."""
    bert = disturb(with_parts(bert_dir, *parts).bert)
    longer, mask = (torch.nn.functional.pad(x, (0, 4)) for x in (IDS, MASK))
    torch.testing.assert_close(states(bert, longer, mask), states(bert), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(states(bert, IDS[:1], MASK[:1]), states(bert)[:4], rtol=1e-4, atol=1e-5)
    nothing = bert(IDS, torch.zeros_like(MASK))["last_hidden_state"]
    assert nothing.isfinite().all()


def check_learning(bert_dir, *parts, monkeypatch, dropout=0.0, factor=0.6, checkpointing=False):
    """Assert that the loss falls in 20 bf16 steps of packed attention, without waiting; return the model.

    With dropout the CPU's attention is spelled out, and reads numbers on the host, which are no device's.
    """
    model = with_parts(bert_dir, *parts, dropout=dropout)
    model.bert.config.gradient_checkpointing = checkpointing
    pack_attention(model)
    batch = a_batch("sst", bert_dir)

    def loss():
        with torch.autocast("cpu", torch.bfloat16), nullcontext() if dropout else no_waiting(monkeypatch):
            return total(model, batch)
    losses = losses_of_20_steps(model, loss)
    assert losses[-1] < factor * losses[0], losses
    return model


def check_checkpoint(bert_dir, *parts):
    """Assert that an encoder made by the same parts over random weights computes the same with loaded weights."""
    model = disturb(with_parts(bert_dir, *parts))
    other = tiny_model(bert_dir)
    torch.manual_seed(5)
    other.bert = BertModel(other.bert.config)  # as load_encoder makes it where the checkpoint has the architecture
    for part in parts:
        part(other.bert)
    other.load_state_dict(model.state_dict())
    assert states(other.bert).equal(states(model.bert))


def attention_input(part, bert_dir, T=6, packed=False):
    """Return an attention in float64 that `part` has changed, its input (2, T, 24) and an additive mask."""
    model = disturb(with_parts(bert_dir, part)).double()
    if packed:
        pack_attention(model)
    torch.manual_seed(2)
    mask = torch.tensor([[1] * T, [1] * (T - 2) + [0] * 2])
    attention = model.bert.bert_layers[0].self_attention
    return attention, torch.randn(2, T, 24, dtype=torch.float64), get_extended_attention_mask(mask, torch.float64)


def with_scores(attention, x, mask, scores_of):
    """Return what the attention gives by hand with the scores scores_of(h, i, j, q, k) of a head's q and k, (B, D)."""
    q, k, v = (BertSelfAttention.transform(attention, x, linear)
               for linear in (attention.query, attention.key, attention.value))  # (B, H, T, D)
    B, H, T, D = q.shape
    scores = torch.stack([torch.stack([torch.stack([
        scores_of(h, i, j, q[:, h, i], k[:, h, j]) for j in range(T)], -1) for i in range(T)], -2)
        for h in range(H)], 1)  # (B, H, T, T)
    return ((scores + mask).softmax(-1) @ v).transpose(1, 2).flatten(2)


__all__ = ["ATTENTION", "FFN", "IDS", "MASK", "NORM", "POSITION", "a_batch", "attention_input", "check_checkpoint",
           "check_learning", "check_padding", "disturb", "no_waiting", "parameters_of", "plain_names", "random_words",
           "reached", "states", "tiny_model", "total", "with_parts", "with_scores"]
