"""MultitaskBERT: encodings, poolers and heads by hand, padding, frozen encoders, and that each task is learned."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from engine.choices import specs_by_task
from extensions import POOLING, TASK_LOSSES
from files.errors import UserError
from multitask_classifier import MultitaskBERT, get_args, pack_pairs
from tasks import COURSE_TASKS, TASKS
from tests.helpers.fixtures_tiny import forward_of, losses_of_20_steps, task_batch

IDS_1 = torch.tensor([[101, 950, 960, 102, 0], [101, 940, 930, 955, 102]])
IDS_2 = torch.tensor([[101, 970, 971, 102], [101, 950, 102, 0]])
MASK_1, MASK_2 = (IDS_1 != 0).long(), (IDS_2 != 0).long()
PAIR = IDS_1, MASK_1, IDS_2, MASK_2
ENCODINGS = [{"pair_encoding": "cross"}, {"pair_encoding": "bi"}, {"pair_encoding": "bi", "pair_score": "cosine"}]


@pytest.fixture
def build(bert_dir):
    """Return a function that builds a model whose encoder heeds what it reads."""
    def build(**config):
        torch.manual_seed(0)
        model = MultitaskBERT(SimpleNamespace(**{
            "pretrained": bert_dir, "option": "finetune", "hidden_dropout_prob": 0.3, **config})).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(10)
        return model
    return build


def pool(model, name, input_ids, attention_mask, token_type_ids=None):
    """Return the pooled encoding, row by row and without padding."""
    rows = []
    for i, length in enumerate(attention_mask.sum(1)):
        types = None if token_type_ids is None else token_type_ids[i : i + 1, :length]
        output = model.bert(input_ids[i : i + 1, :length], torch.ones(1, length), types)
        rows.append({"cls": output["last_hidden_state"][0, 0], "mean": output["last_hidden_state"][0].mean(0),
                     "pooler": output["pooler_output"][0]}[name])
    return torch.stack(rows)


def through(head, x):
    """Return a two-layer head's output without dropout, by hand."""
    _, first, _, _, second = head
    return F.leaky_relu(x @ first.weight.T + first.bias, 0.01) @ second.weight.T + second.bias


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("pooling", [
    "cls", "mean", "pooler", {"sst": "pooler", "para": "cls", "sts": "mean"}])
@torch.no_grad()
def test_predictions_by_hand(pooling, encoding, build):
    model = build(pooling=pooling, **encoding)
    by_task = pooling if isinstance(pooling, dict) else dict.fromkeys(("sst", "para", "sts"), pooling)
    sentiment = through(model.sentiment_head, pool(model, by_task["sst"], IDS_1, MASK_1))
    torch.testing.assert_close(model.predict_sentiment(IDS_1, MASK_1), sentiment)
    for task, predict, head in (("para", model.predict_paraphrase, model.paraphrase_head),
                                ("sts", model.predict_similarity, model.similarity_head)):
        u, v = pool(model, by_task[task], IDS_1, MASK_1), pool(model, by_task[task], IDS_2, MASK_2)
        if encoding["pair_encoding"] == "cross":
            expected = through(head, pool(model, by_task[task], *pack_pairs(*PAIR, 512)))
        elif "pair_score" not in encoding:
            expected = through(head, torch.cat([u, v, abs(u - v)], dim=1))
        else:
            cosine = (u * v).sum(1, keepdim=True) / (u.norm(dim=1) * v.norm(dim=1)).unsqueeze(1)
            expected = head.scale * cosine + head.bias
        torch.testing.assert_close(predict(*PAIR), expected.squeeze(1))
        assert predict(*PAIR)[0] != predict(*PAIR)[1]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("pooling", ["cls", "mean", "pooler"])
@torch.no_grad()
def test_padding_changes_no_prediction(pooling, encoding, build):
    model = build(pooling=pooling, **encoding)
    wider = [F.pad(x, (0, width)) for x, width in zip(PAIR, (3, 3, 7, 7), strict=True)]
    torch.testing.assert_close(model.predict_sentiment(*wider[:2]), model.predict_sentiment(*PAIR[:2]))
    for predict in (model.predict_paraphrase, model.predict_similarity):
        torch.testing.assert_close(predict(*wider), predict(*PAIR))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("task", ["para", "sts"])
@torch.no_grad()
def test_predictions_in_both_orders_are_the_mean_of_two(task, encoding, build):
    given, both = build(pooling="mean", **encoding), build(pooling="mean", pair_order="both", **encoding)
    predict, average = ({"para": model.predict_paraphrase, "sts": model.predict_similarity}[task]
                        for model in (given, both))
    one, other = predict(*PAIR), predict(IDS_2, MASK_2, IDS_1, MASK_1)
    torch.testing.assert_close(average(*PAIR), (one + other) / 2)
    torch.testing.assert_close(average(IDS_2, MASK_2, IDS_1, MASK_1), (one + other) / 2)
    assert one.allclose(other) == ("pair_score" in encoding)  # the cosine alone is symmetric
    batch = dict(zip(("token_ids_1", "attention_mask_1", "token_ids_2", "attention_mask_2"), PAIR, strict=True))
    assert both.logits(task, batch).equal(one)  # losses see the pairs as they are
    if encoding["pair_encoding"] == "cross":
        packed = dict(zip(("token_ids", "attention_mask", "token_type_ids"), pack_pairs(*PAIR, 512), strict=True))
        torch.testing.assert_close(both.predict(task, packed), (one + other) / 2)
    assert both.predict_sentiment(IDS_1, MASK_1).equal(given.predict_sentiment(IDS_1, MASK_1))


def test_cosine_heads_start_on_the_labels_scales(build):
    model = build(pair_encoding="bi", pair_score="cosine")
    u = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    v = torch.tensor([[2.0, 0.0], [0.0, 3.0]])  # cosines 1 and 0
    assert (model.paraphrase_head(u, v).flatten() > 0).tolist() == [True, False]
    assert model.similarity_head(u, v).flatten().tolist() == [5.0, 0.0]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_frozen_encoder_has_no_trainable_parameter_and_no_dropout(encoding, build):
    model = build(option="pretrain", hidden_dropout_prob=0.0, **encoding).train()
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    pair_parts = ("scale", "bias") if "pair_score" in encoding else ("1.weight", "1.bias", "4.weight", "4.bias")
    assert names == {f"sentiment_head.{part}" for part in ("1.weight", "1.bias", "4.weight", "4.bias")} | {
        f"{head}.{part}" for head in ("paraphrase_head", "similarity_head") for part in pair_parts}
    assert not any(module.training for module in model.bert.modules()) and model.sentiment_head.training
    assert model.predict_sentiment(IDS_1, MASK_1).equal(model.predict_sentiment(IDS_1, MASK_1))

    trained = build(hidden_dropout_prob=0.0, **encoding).train()
    assert all(p.requires_grad for p in trained.parameters())
    assert not trained.predict_sentiment(IDS_1, MASK_1).equal(trained.predict_sentiment(IDS_1, MASK_1))


@pytest.mark.parametrize("task", ["sst", "para", "sts"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_loss_of_each_task_falls_in_20_steps(encoding, task, bert_dir):
    torch.manual_seed(0)
    model = MultitaskBERT(SimpleNamespace(pretrained=bert_dir, option="finetune", hidden_dropout_prob=0.0,
                                          encoder_dropout_prob=0.0, **encoding)).train()
    batch = task_batch(task, bert_dir)
    losses = losses_of_20_steps(model, lambda: TASK_LOSSES[TASKS[task].loss](forward_of(model, batch)))
    assert losses[-1] < 0.6 * losses[0]


def test_specs_by_task():
    def parse(specs):
        return specs_by_task("pooling", specs, POOLING, "cls", COURSE_TASKS)

    assert parse(None) == {"sst": "cls", "para": "cls", "sts": "cls"}
    assert parse(["mean"]) == {"sst": "mean", "para": "mean", "sts": "mean"}
    assert parse(["mean", "sst=pooler", "sts=cls"]) == {"sst": "pooler", "para": "mean", "sts": "cls"}
    assert parse(["sst=pooler", "mean"])["sst"] == "mean"
    for wrong in ("median", "sst=", "sst=median", ""):
        with pytest.raises(UserError, match="pooling.*cls, mean, max, pooler"):
            parse([wrong])
    for wrong in ("mnli=mean", "mean=sst", "=mean"):
        with pytest.raises(UserError, match="pooling.*sst, para, sts"):
            parse([wrong])


@pytest.mark.parametrize("flags, encoding, score", [
    ("", ("cross", "cross"), ("concat", "concat")), ("--pair_encoding bi", ("bi", "bi"), ("concat", "concat")),
    ("--pair_encoding sts=bi --pair_score product", ("cross", "bi"), ("product", "product")),
    ("--pair_encoding bi para=cross --pair_score sts=cosine", ("cross", "bi"), ("concat", "cosine")),
    ("--pair_encoding bi --pair_encoding cross", ("cross", "cross"), ("concat", "concat")),
    ("--pair_encoding para=cross --loss sts=cosine", ("cross", "bi"), ("concat", "cosine"))])
def test_pairs_by_task(flags, encoding, score):
    args = get_args(flags.split())
    assert [tuple(choice[task] for task in ("para", "sts")) for choice in (args.pair_encoding, args.pair_score)] == [
        encoding, score]
