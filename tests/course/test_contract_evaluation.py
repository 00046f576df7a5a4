"""The contract's evaluators and the bytes of its prediction files, with a model whose answers stand in the text."""
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

import classifier
import datasets
import evaluation


class DigitModel(torch.nn.Module):
    """Answer with the digit that follows [CLS]: class d, a paraphrase where it is odd, similarity d + 1/2."""

    def __init__(self, tokenizer):
        super().__init__()
        self.zero = tokenizer.convert_tokens_to_ids("0")
        assert tokenizer.convert_tokens_to_ids("9") == self.zero + 9

    def digits(self, token_ids):
        assert not self.training and not torch.is_grad_enabled()
        return token_ids[:, 1] - self.zero

    def predict_sentiment(self, token_ids, attention_mask):
        return torch.nn.functional.one_hot(self.digits(token_ids), 5).float()

    forward = predict_sentiment

    def predict_paraphrase(self, ids1, mask1, ids2, mask2):
        return (self.digits(ids1) % 2 * 2.0 - 1.0).unsqueeze(1)  # (B, 1), as course models return it

    def predict_similarity(self, ids1, mask1, ids2, mask2):
        return self.digits(ids1) + 0.5

# Lengths differ, so that a loader which sorts by length must put the ids back into file order.
FILES = {
    "ids-sst-dev.csv": "\tid\tsentence\tsentiment\n0\tS1\t3\t3\n1\ts2\t1 a cat runs\t2\n"
                       "2\ts3\t4 a\t4\n3\ts4\t1 a b\t2\n",
    "ids-sst-test-student.csv": "0\t\tid\tsentence\n1\t0.0\tt1\t0\n2\t1.0\tt2\t2 a cat\n3\t2.0\tT3\t1 a\n",
    "quora-dev.csv": "\tid\tsentence1\tsentence2\tis_duplicate\n9\tP1\t1\ta\t1.0\n8\tp2\t2 a b c\ta\t0.0\n"
                     "7\tno-label\t1\ta\t\n6\tp4\t3 a\ta b c d e\t0.0\n",
    "quora-test-student.csv": "\tid\tsentence1\tsentence2\n9\tq1\t1\ta\n8\tQ2\t2 a b c\ta\n",
    "sts-dev.csv": "\tid\tsentence1\tsentence2\tsimilarity\n5\td1\t1 a\tb\t0.0\n"
                   "6\td2\t0 a b c d\tb\t1.0\n7\td3\t3\tb\t5.0\n",
    "sts-test-student.csv": "\tid\tsentence1\tsentence2\n5\te1\t2\tb\n6\te2\t4 a b c d\tb\n",
}
PREDICTIONS = {
    "sst-dev-output.csv": b"id \t Predicted_Sentiment \ns1 , 3 \ns2 , 1 \ns3 , 4 \ns4 , 1 \n",
    "sst-test-output.csv": b"id \t Predicted_Sentiment \nt1 , 0 \nt2 , 2 \nt3 , 1 \n",
    "para-dev-output.csv": b"id \t Predicted_Is_Paraphrase \np1 , 1.0 \np2 , 0.0 \np4 , 1.0 \n",
    "para-test-output.csv": b"id \t Predicted_Is_Paraphrase \nq1 , 1.0 \nq2 , 0.0 \n",
    "sts-dev-output.csv": b"id \t Predicted_Similiary \nd1 , 1.5 \nd2 , 0.5 \nd3 , 3.5 \n",
    "sts-test-output.csv": b"id \t Predicted_Similiary \ne1 , 2.5 \ne2 , 4.5 \n",
}


@pytest.fixture
def args(tmp_path, tiny_cache, monkeypatch):
    """Stand beside data/ with the six files; return what course code hands to `test_model_multitask`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name, text in FILES.items():
        (tmp_path / "data" / name).write_text(text, encoding="utf-8")
    paths = {f"{task}_{split}": f"data/{name}{'-student' if split == 'test' else ''}.csv"
             for task, stem in (("sst", "ids-sst"), ("para", "quora"), ("sts", "sts"))
             for split in ("dev", "test") for name in (f"{stem}-{split}",)}
    outs = {f"{task}_{split}_out": f"predictions/{task}-{split}-output.csv"
            for task in ("sst", "para", "sts") for split in ("dev", "test")}
    return SimpleNamespace(batch_size=2, use_gpu=False, **paths, **outs)


def loaders(args, split):
    """Return the course's three loaders of one split."""
    sst, _, para, sts = datasets.load_multitask_data(*(getattr(args, f"{task}_{split}") for task in (
        "sst", "para", "sts")), split=split)
    if split == "test":
        made = [datasets.SentenceClassificationTestDataset(sst, args), datasets.SentencePairTestDataset(para, args),
                datasets.SentencePairTestDataset(sts, args)]
    else:
        made = [datasets.SentenceClassificationDataset(sst, args), datasets.SentencePairDataset(para, args),
                datasets.SentencePairDataset(sts, args, isRegression=True)]
    return [DataLoader(data, shuffle=False, batch_size=2, collate_fn=data.collate_fn) for data in made]


def assert_plain(values):
    """Assert that evaluators return Python floats and lists of Python values."""
    for value in values:
        assert type(value) in (float, list), type(value)
        if type(value) is list:
            assert {type(item) for item in value} <= {int, float, str}


def test_model_test_multitask_writes_the_six_files_byte_for_byte(args, tmp_path):
    model = DigitModel(datasets.SentenceClassificationDataset([], args).tokenizer)
    evaluation.test_model_multitask(args, model, torch.device("cpu"))
    written = {path.name: path.read_bytes() for path in (tmp_path / "predictions").glob("*.csv")}
    assert written == PREDICTIONS


def test_model_eval_multitask_order_and_values(args):
    sst, para, sts = loaders(args, "dev")
    model = DigitModel(sst.dataset.tokenizer)
    results = evaluation.model_eval_multitask(sst, para, sts, model, torch.device("cpu"))
    assert_plain(results)
    # sst: 3 1 4 1 against 3 2 4 2; para: 1 0 1 against 1 0 0; sts: 1.5 .5 3.5 against 0 1 5
    assert results[:3] == (0.5, [3, 1, 4, 1], ["s1", "s2", "s3", "s4"])
    assert results[3:6] == (pytest.approx(2 / 3), [1.0, 0.0, 1.0], ["p1", "p2", "p4"])
    # deviations -1/3 -4/3 5/3 and -2 -1 3: covariance 7, squares 42/9 and 14
    assert results[6:] == (pytest.approx(7 / (42 / 9 * 14) ** 0.5), [1.5, 0.5, 3.5], ["d1", "d2", "d3"])


def test_model_eval_test_multitask_order_and_values(args):
    sst, para, sts = loaders(args, "test")
    results = evaluation.model_eval_test_multitask(sst, para, sts, DigitModel(sst.dataset.tokenizer), "cpu")
    assert_plain(results)
    assert results == ([0, 2, 1], ["t1", "t2", "t3"], [1.0, 0.0], ["q1", "q2"], [2.5, 4.5], ["e1", "e2"])


@pytest.mark.parametrize("evaluate", ["evaluation.model_eval_sst", "classifier.model_eval"])
def test_sentiment_evaluators(evaluate, args):
    loader = loaders(args, "dev")[0]
    module, name = evaluate.split(".")
    function = getattr({"evaluation": evaluation, "classifier": classifier}[module], name)
    acc, f1, y_pred, y_true, sents, sent_ids = function(loader, DigitModel(loader.dataset.tokenizer), "cpu")
    assert_plain([acc, f1, y_pred, y_true, sents, sent_ids])
    assert (acc, y_pred, y_true) == (0.5, [3, 1, 4, 1], [3, 2, 4, 2])
    assert f1 == pytest.approx(0.5)  # classes 3 and 4: 1, classes 1 and 2: 0
    assert (sents, sent_ids) == (["3", "1 a cat runs", "4 a", "1 a b"], ["s1", "s2", "s3", "s4"])


def test_model_test_eval(args):
    loader = loaders(args, "test")[0]
    results = classifier.model_test_eval(loader, DigitModel(loader.dataset.tokenizer), "cpu")
    assert tuple(results) == ([0, 2, 1], ["0", "2 a cat", "1 a"], ["t1", "t2", "t3"])


def test_a_constant_similarity_scores_zero_with_a_warning(args):
    sst, para, sts = loaders(args, "dev")
    model = DigitModel(sst.dataset.tokenizer)
    model.predict_similarity = lambda ids1, mask1, ids2, mask2: torch.full((len(ids1),), 2.5)
    with pytest.warns(UserWarning, match="constant"):
        results = evaluation.model_eval_multitask(sst, para, sts, model, "cpu")
    assert results[6] == 0.0
