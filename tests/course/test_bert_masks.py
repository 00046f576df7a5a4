"""Padding, mixed precision and checkpointing leave what BERT computes as it is; one mask serves all layers."""

import pytest
import torch

import bert
from bert import BertModel
from config import BertConfig
from tests.course.test_bert import LENGTHS, SMALL, inputs


@pytest.fixture
def model():
    torch.manual_seed(0)
    return BertModel(BertConfig(**SMALL)).eval()


def test_a_row_of_padding_alone_gives_no_nan(model):
    input_ids, attention_mask, _ = inputs(60)
    attention_mask[1] = 0
    output = model.train()(input_ids, attention_mask)
    assert all(tensor.isfinite().all() for tensor in output.values())
    output["pooler_output"].sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
def test_padding_changes_nothing_for_real_tokens(model):
    input_ids, attention_mask, token_type_ids = inputs(60)
    together = model(input_ids, attention_mask, token_type_ids)
    other_padding = model(torch.where(attention_mask == 1, input_ids, 7), attention_mask, token_type_ids)
    for i, n in enumerate(LENGTHS):
        alone = model(input_ids[i:i + 1, :n], attention_mask[i:i + 1, :n], token_type_ids[i:i + 1, :n])
        for output in (together, other_padding):
            torch.testing.assert_close(output["last_hidden_state"][i, :n], alone["last_hidden_state"][0])
            torch.testing.assert_close(output["pooler_output"][i], alone["pooler_output"][0])


def test_gradient_checkpointing_gives_the_same_gradients(monkeypatch):
    calls = []
    checkpoint = bert.checkpoint
    monkeypatch.setattr(bert, "checkpoint", lambda *args, **options: calls.append(1) or checkpoint(*args, **options))
    results = []
    for gradient_checkpointing in (False, True):
        torch.manual_seed(0)
        model = BertModel(BertConfig(**SMALL, gradient_checkpointing=gradient_checkpointing)).train()
        loss = model(*inputs(60))["pooler_output"].square().sum()  # dropout draws the same numbers twice
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert len(calls) == SMALL["num_hidden_layers"]
    model.eval()(*inputs(60))
    assert len(calls) == SMALL["num_hidden_layers"]


def test_one_mask_serves_all_layers(model, monkeypatch):
    calls = []
    extend = bert.get_extended_attention_mask
    monkeypatch.setattr(bert, "get_extended_attention_mask", lambda *args: calls.append(args) or extend(*args))
    model(*inputs(60))
    with torch.autocast("cpu", torch.bfloat16):
        model(*inputs(60))
    assert [dtype for _, dtype in calls] == [torch.float32, torch.bfloat16]  # what attention computes in


@torch.no_grad()
def test_bf16_is_near(model):
    exact = model(*inputs(60))
    with torch.autocast("cpu", torch.bfloat16):
        near = model(*inputs(60))
    real = inputs(60)[1].bool()
    torch.testing.assert_close(near["last_hidden_state"][real].float(), exact["last_hidden_state"][real],
                               rtol=0, atol=0.1)
    half = model.to(torch.bfloat16)(*inputs(60))["last_hidden_state"]
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half[real].float(), exact["last_hidden_state"][real], rtol=0, atol=0.1)
