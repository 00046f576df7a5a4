"""The contract's data files: readers, batches, dtypes, blob ids. Rows are synthetic, expected values typed by hand."""
import hashlib
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

import classifier
import datasets

BLOB_IDS = """
    8a0f5dcf3d40189b96c801a12cd79bf8003e61de ids-cfimdb-dev.csv
    1e789c709b3ca0511f027a309b6d8bd21cde41b2 ids-cfimdb-test-student.csv
    cd57bcbd2f7214ea6dd1783d3e885d324b1f478d ids-cfimdb-train.csv
    3171aa629a340809d2db4a50df8f6e5ec9420ab0 ids-sst-dev.csv
    bbd2313758825f86e24416d6aad64cd93370cf7a ids-sst-test-student.csv
    9cb7333cb1dae49c2bd2a4b56a24882a6e8704b5 ids-sst-train.csv
    de7cfa32428fd470b93f778fccc45a619e01336f quora-dev.csv
    f257ef00558555afb50819578a58205732b16354 quora-test-student.csv
    a3b5546f6a0e65b60a328a5d294d1038f5bed1da quora-train.csv
    9392860e584717976b8d817cc40c9e6ceeec27e0 sts-dev.csv
    25f0cf8fafdd1f82b9e2bb460c708af34341ce60 sts-test-student.csv
    12b17760e7795fee35aeeabc290d5651de02622a sts-train.csv
"""
USABLE_ROWS = {
    "ids-sst-train.csv": 8544, "ids-sst-dev.csv": 1101, "ids-sst-test-student.csv": 2210,
    "ids-cfimdb-train.csv": 1707, "ids-cfimdb-dev.csv": 245, "ids-cfimdb-test-student.csv": 488,
    "quora-train.csv": 141498, "quora-dev.csv": 20212, "quora-test-student.csv": 40431,
    "sts-train.csv": 6040, "sts-dev.csv": 863, "sts-test-student.csv": 1725,
}

SST_ROWS = "\tid\tsentence\tsentiment\n0\tAB1 \t It 's A lovely film . \t3\n7\tcd2\tDull\t0\n9\tef3\tfine, then\t3\n"
SST_TEST_ROWS = "0\t\tid\tsentence\n1\t0.0\tAB1 \t Effective BUT slow \n2\t1.0\tcd2\tDull\n"
QUORA_ROWS = ("\tid\tsentence1\tsentence2\tis_duplicate\n"
              "290\t AB1\tWho's there?\tA, b. C\t0.0\n"
              "31\tcd2\tOne\tTwo\t1.0\n"
              "65\tno-label\tOne\tTwo\t\n"
              '26\tno-second\t"""Given a set, what?"""\t\t\n'
              '14\tef3\t"""What is """"staff work""""?"""\tTwo\t1.0\n')
QUORA_TEST_ROWS = "\tid\tsentence1\tsentence2\n147\tAB1\tOne?\tTwo.\n"
STS_ROWS = "\tid\tsentence1\tsentence2\tsimilarity\n5\tAB1\tUN chief's visit.\tA man\t4.6\n8\tcd2\tA\tB\t0.0\n"


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a text under a name and gives its path."""
    def write_text(name, text):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)
    return write_text


@pytest.mark.parametrize("text, tokens", [
    ("Hello, World?", "hello , world ?"),
    ("It's 3.5.", "it 's 3 .5 ."),
    ("  two\tgaps \n here  ", "two gaps here"),
    ("Keep! this: \"as\" (it) is-", "keep! this: \"as\" (it) is-"),
    ("", ""),
])
def test_preprocess_string(text, tokens):
    assert datasets.preprocess_string(text) == tokens


@pytest.mark.parametrize("name", ["ids-sst", "ids-cfimdb"])
def test_load_data_reads_sentences(name, write):
    train, test = write(f"{name}-train.csv", SST_ROWS), write(f"{name}-test-student.csv", SST_TEST_ROWS)
    rows = [("it 's a lovely film .", 3, "ab1"), ("dull", 0, "cd2"), ("fine, then", 3, "ef3")]
    assert classifier.load_data(train) == (rows, 2)
    assert classifier.load_data(train, "train") == (rows, 2)
    assert classifier.load_data(train, "valid") == rows
    assert classifier.load_data(test, "test") == [("effective but slow", "ab1"), ("dull", "cd2")]


@pytest.mark.parametrize("split", ["train", "dev"])
def test_load_multitask_data(split, write):
    sst, num_labels, para, sts = datasets.load_multitask_data(
        write("ids-sst-train.csv", SST_ROWS), write("quora-train.csv", QUORA_ROWS), write("sts-train.csv", STS_ROWS),
        split=split)
    assert sst == [("it 's a lovely film .", 3, "ab1"), ("dull", 0, "cd2"), ("fine, then", 3, "ef3")]
    assert num_labels == {3: 0, 0: 1}  # the course's dict: label -> order of its first appearance
    assert para == [("who 's there ?", "a , b . c", 0, "ab1"), ("one", "two", 1, "cd2"),
                    ('"what is ""staff work"" ?"', "two", 1, "ef3")]
    assert all(type(row[2]) is int for row in para)
    assert sts == [("un chief 's visit .", "a man", 4.6, "ab1"), ("a", "b", 0.0, "cd2")]
    assert all(type(row[2]) is float for row in sts)


def test_load_multitask_data_reads_the_test_split(write):
    pairs = write("quora-test-student.csv", QUORA_TEST_ROWS)
    sst, num_labels, para, sts = datasets.load_multitask_data(
        write("ids-sst-test-student.csv", SST_TEST_ROWS), pairs, pairs, split="test")
    assert sst == [("effective but slow", "ab1"), ("dull", "cd2")]
    assert num_labels == {}
    assert para == sts == [("one ?", "two .", "ab1")]


def test_unlabelled_quora_rows_are_counted_and_reported(write, capsys):
    datasets.load_multitask_data(write("ids-sst-dev.csv", SST_ROWS), write("quora-dev.csv", QUORA_ROWS),
                                 write("sts-dev.csv", STS_ROWS), split="dev")
    said = "".join(capsys.readouterr())
    report = [line for line in said.splitlines() if "label" in line.lower()]
    assert any("2" in line and "quora-dev.csv" in line for line in report), said


def test_load_multitask_test_data_says_what_to_call():
    with pytest.raises(Exception, match=r"load_multitask_data\(.*split=['\"]test['\"]\)"):
        datasets.load_multitask_test_data()


SINGLE = [("a cat", 3, "i1"), ("a dog runs", 0, "i2")]
PAIR = [("a cat", "a dog", 1, "i1"), ("how can i learn", "dog", 0, "i2")]
SIDES = "token_ids_{0} token_type_ids_{0} attention_mask_{0}"
BATCHES = [  # data set, rows, keys in the order of pad_data
    (datasets, "SentenceClassificationDataset", SINGLE, "token_ids attention_mask labels sents sent_ids"),
    (datasets, "SentenceClassificationTestDataset", [r[::2] for r in SINGLE],
     "token_ids attention_mask sents sent_ids"),
    (classifier, "SentimentDataset", SINGLE, "token_ids attention_mask labels sents sent_ids"),
    (classifier, "SentimentTestDataset", [r[::2] for r in SINGLE], "token_ids attention_mask sents sent_ids"),
    (datasets, "SentencePairDataset", PAIR, f"{SIDES.format(1)} {SIDES.format(2)} labels sent_ids"),
    (datasets, "SentencePairTestDataset", [(*r[:2], r[3]) for r in PAIR],
     f"{SIDES.format(1)} {SIDES.format(2)} sent_ids"),
]


@pytest.mark.parametrize("module, name, rows, keys", BATCHES, ids=[case[1] for case in BATCHES])
def test_batches(module, name, rows, keys, tiny_cache):
    args = SimpleNamespace()
    data = getattr(module, name)(rows, args)
    assert data.dataset == rows and data.p is args and len(data) == 2 and data[1] == rows[1]
    a, cat, dog, runs = data.tokenizer.convert_tokens_to_ids(["a", "cat", "dog", "runs"])

    batch = data.collate_fn(rows)
    assert sorted(batch) == sorted(keys.split())
    for value, key in zip(data.pad_data(rows), keys.split(), strict=True):
        assert value.equal(batch[key]) if torch.is_tensor(value) else value == batch[key]
    assert batch["sent_ids"] == ["i1", "i2"]
    if "sents" in batch:
        assert batch["sents"] == ["a cat", "a dog runs"]
        assert batch["token_ids"].tolist() == [[101, a, cat, 102, 0], [101, a, dog, runs, 102]]
        assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    else:
        assert batch["token_ids_1"].tolist()[0] == [101, a, cat, 102, 0, 0]
        assert batch["token_ids_2"].tolist() == [[101, a, dog, 102], [101, dog, 102, 0]]
        assert batch["attention_mask_2"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
        assert not batch["token_type_ids_1"].any() and not batch["token_type_ids_2"].any()
    assert {value.dtype for value in batch.values() if torch.is_tensor(value)} == {torch.int64}
    assert all(value.device.type == "cpu" for value in batch.values() if torch.is_tensor(value))


def test_regression_labels_are_float64_on_the_cpu(tiny_cache):
    rows = [("a", "b", 4.6, "i1"), ("c", "d", 0.0, "i2"), ("e", "f", 2.5, "i3")]
    data = datasets.SentencePairDataset(rows, SimpleNamespace(), isRegression=True)
    labels = next(iter(DataLoader(data, batch_size=3, collate_fn=data.collate_fn)))["labels"]
    assert labels.dtype == torch.float64 and labels.device.type == "cpu"
    assert labels.tolist() == [4.6, 0.0, 2.5]


def test_download_checks_the_contracts_blob_ids():
    expected = {name: blob for blob, name in (line.split() for line in BLOB_IDS.split("\n") if line.strip())}
    assert len(expected) == 12
    tables = [v for v in vars(import_module("scripts.download_data")).values() if isinstance(v, dict)]
    assert expected in tables


@pytest.mark.parametrize("name", USABLE_ROWS)
def test_usable_rows_of_the_real_files(name, course_dir, write, capsys):
    path = course_dir / name
    content = path.read_bytes() if path.exists() else b""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if f"{blob} {name}" not in BLOB_IDS:
        pytest.skip(f"{name} is absent or not the course's own file")
    split = next(split for split in ("train", "dev", "test") if split in name)
    if name.startswith("ids"):
        rows = classifier.load_data(str(path), "valid" if split == "dev" else split)
        assert len(rows[0] if split == "train" else rows) == USABLE_ROWS[name]
        return
    other = write("other.csv", "\tid\tsentence\tsentence1\tsentence2\tsentiment\tis_duplicate\tsimilarity\n"
                               "0\tx\ta\tb\tc\t1\t1\t1\n")
    quora = name.startswith("quora")
    pairs = (str(path), other) if quora else (other, str(path))
    rows = datasets.load_multitask_data(other, *pairs, split=split)
    assert len(rows[2 if quora else 3]) == USABLE_ROWS[name]
