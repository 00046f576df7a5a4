"""A loop written as students write theirs, over the course's names alone, and the models on the course's config."""
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

import classifier
import datasets
from evaluation import model_eval_multitask, model_eval_sst
from multitask_classifier import MultitaskBERT, save_model
from optimizer import AdamW

CPU = torch.device("cpu")


def course_config(option="finetune", **changes):
    """Return the namespace on which the course builds its models; `num_labels` is the multitask script's dict."""
    course = {"hidden_dropout_prob": 0.3, "num_labels": {3: 0, 1: 1, 4: 2, 0: 3, 2: 4}, "hidden_size": 768,
              "data_dir": ".", "option": option}
    return SimpleNamespace(**{key: value for key, value in {**course, **changes}.items() if value is not None})


def loader(data, shuffle=True):
    return DataLoader(data, shuffle=shuffle, batch_size=8, collate_fn=data.collate_fn)


def sides(batch):
    """Return the four arguments of the pair methods."""
    return [batch[name].to(CPU) for name in ("token_ids_1", "attention_mask_1", "token_ids_2", "attention_mask_2")]


@pytest.fixture
def rows(course_folder):
    """Return the multitask train rows: sst, para, sts."""
    sst, _, para, sts = datasets.load_multitask_data(
        "data/ids-sst-train.csv", "data/quora-train.csv", "data/sts-train.csv", split="train")
    return sst, para, sts


def test_a_students_multitask_loop_learns_and_reloads(rows):
    torch.manual_seed(0)
    args = SimpleNamespace(lr=1e-3, use_gpu=False)
    sst_data = datasets.SentenceClassificationDataset(rows[0], args)
    para_data = datasets.SentencePairDataset(rows[1], args)
    sts_data = datasets.SentencePairDataset(rows[2], args, isRegression=True)
    loaders = [loader(sst_data), loader(para_data), loader(sts_data)]
    model = MultitaskBERT(course_config(hidden_dropout_prob=0.0)).to(CPU)
    optimizer = AdamW(model.parameters(), lr=args.lr)

    totals = []
    for _ in range(8):
        model.train()
        total = 0.0
        for sst, para, sts in zip(*loaders, strict=True):
            optimizer.zero_grad()
            logits = model.predict_sentiment(sst["token_ids"].to(CPU), sst["attention_mask"].to(CPU))
            loss = F.cross_entropy(logits, sst["labels"].to(CPU).view(-1))
            duplicate = model.predict_paraphrase(*sides(para)).view(-1)
            loss = loss + F.binary_cross_entropy_with_logits(duplicate, para["labels"].float())
            similar = model.predict_similarity(*sides(sts)).view(-1)
            loss = loss + F.mse_loss(similar, sts["labels"].float())
            loss.backward()
            optimizer.step()
            total += loss.item()
        totals.append(total)
    assert totals[-1] < 0.7 * totals[0]

    acc, f1, y_pred, y_true, sents, sent_ids = model_eval_sst(loaders[0], model, CPU)
    assert acc == sum(p == y for p, y in zip(y_pred, y_true, strict=True)) / 8 and 0 <= f1 <= 1
    assert sorted(sent_ids) == sorted(row[2] for row in rows[0]) and sorted(sents) == sorted(row[0] for row in rows[0])
    loaders = [loader(data, shuffle=False) for data in (sst_data, para_data, sts_data)]
    before = model_eval_multitask(*loaders, model, CPU)
    assert before[0] == acc and len(before) == 9

    save_model(model, optimizer, args, course_config(), "student.pt")
    saved = torch.load("student.pt", weights_only=True)
    again = MultitaskBERT(saved["model_config"])
    again.load_state_dict(saved["model"])
    AdamW(again.parameters(), lr=1.0).load_state_dict(saved["optim"])
    after = model_eval_multitask(*(loader(data, shuffle=False) for data in (sst_data, para_data, sts_data)), again, CPU)
    assert after == before


def test_a_students_classifier_loop_learns_and_reloads(course_folder):
    torch.manual_seed(0)
    args = SimpleNamespace()
    train_rows, num_labels = classifier.load_data("data/ids-sst-train.csv", "train")
    data = classifier.SentimentDataset(train_rows, args)
    model = classifier.BertSentimentClassifier(course_config(num_labels=num_labels))
    optimizer = AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        model.train()
        for batch in loader(data):
            loss = F.cross_entropy(model(batch["token_ids"], batch["attention_mask"]), batch["labels"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    before = classifier.model_eval(loader(data, shuffle=False), model, CPU)

    classifier.save_model(model, optimizer, args, course_config(num_labels=num_labels), "student.pt")
    saved = torch.load("student.pt", weights_only=True)
    again = classifier.BertSentimentClassifier(saved["model_config"])
    again.load_state_dict(saved["model"])
    assert classifier.model_eval(loader(data, shuffle=False), again, CPU) == before


@pytest.mark.parametrize("changes, trained", [
    ({"option": "pretrain"}, False), ({"option": "finetune"}, True),
    ({"option": None, "fine_tune_mode": "last-linear-layer"}, False),
    ({"option": None, "fine_tune_mode": "full-model"}, True),
])
def test_the_courses_config_freezes_or_trains_bert(changes, trained, tiny_cache):
    for model in (MultitaskBERT(course_config(**changes)),
                  classifier.BertSentimentClassifier(course_config(**changes, num_labels=5))):
        assert {p.requires_grad for p in model.bert.parameters()} == {trained}
        assert all(p.requires_grad for name, p in model.named_parameters() if not name.startswith("bert."))


def test_shapes_and_padding_of_the_predictions(tiny_cache):
    model = MultitaskBERT(course_config()).eval()
    ids1 = torch.tensor([[101, 900, 102, 0], [101, 910, 920, 102]])
    ids2 = torch.tensor([[101, 930, 102], [101, 900, 102]])
    mask1, mask2 = (ids1 != 0).long(), (ids2 != 0).long()
    wider = [F.pad(x, (0, 3)) for x in (ids1, mask1, ids2, mask2)]
    with torch.no_grad():
        assert model(ids1, mask1).shape[0] == 2
        sentiment = model.predict_sentiment(ids1, mask1)
        assert sentiment.shape == (2, 5)
        torch.testing.assert_close(model.predict_sentiment(*wider[:2]), sentiment)
        for predict in (model.predict_paraphrase, model.predict_similarity):
            logits = predict(ids1, mask1, ids2, mask2)
            assert logits.shape[0] == 2 and logits.numel() == 2
            torch.testing.assert_close(predict(*wider), logits)
