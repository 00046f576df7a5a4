"""Make a tiny random BERT and tiny course files, and the fixtures that put them where the course's code looks.

`conftest.py` imports the fixtures: `bert_dir`, `tiny_bert`, `tiny_cache`, `course_folder`.
"""
import string
from pathlib import Path
from types import SimpleNamespace

import pytest

SPECIAL_IDS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}  # as in bert-base-uncased
WORDS = (
    "the a film movie plot cast is was feels looks very never quite good great bad dull slow funny warm cold sharp "
    "how can i learn cook buy fix read write play what where why who a dog cat man woman child runs sits sings eats "
    "on in by near with and but or not best worst way start today now guitar soup car book piano street park river"
)

# name -> columns after the unnamed index, as the course's files have them
COURSE_FILES = {
    "ids-sst-train.csv": ("id", "sentence", "sentiment"),
    "ids-sst-dev.csv": ("id", "sentence", "sentiment"),
    "ids-sst-test-student.csv": ("id", "sentence"),
    "ids-cfimdb-train.csv": ("id", "sentence", "sentiment"),
    "ids-cfimdb-dev.csv": ("id", "sentence", "sentiment"),
    "ids-cfimdb-test-student.csv": ("id", "sentence"),
    "quora-train.csv": ("id", "sentence1", "sentence2", "is_duplicate"),
    "quora-dev.csv": ("id", "sentence1", "sentence2", "is_duplicate"),
    "quora-test-student.csv": ("id", "sentence1", "sentence2"),
    "sts-train.csv": ("id", "sentence1", "sentence2", "similarity"),
    "sts-dev.csv": ("id", "sentence1", "sentence2", "similarity"),
    "sts-test-student.csv": ("id", "sentence1", "sentence2"),
}


def tiny_vocab():
    """Return about 1,000 vocabulary entries: special tokens at BERT's ids, characters, their `##` forms and words."""
    size = 1000
    characters = list(string.ascii_lowercase + string.digits + string.punctuation)
    entries = dict.fromkeys([*characters, *(f"##{c}" for c in characters), *WORDS.split()])
    vocab = [f"[unused{i}]" for i in range(size - len(entries))] + list(entries)
    for token, i in SPECIAL_IDS.items():
        vocab[i] = token
    return vocab


def tiny_bert_dir(path, hidden_size=768, num_hidden_layers=1, num_attention_heads=12, intermediate_size=64, seed=0):
    """Write config.json, model.safetensors and vocab.txt of a random BERT into `path` (made if absent); return it.

    The hidden size is bert-base's because the course's namespaces say 768; one thin layer keeps it fast.
    """
    import torch

    from bert import BertModel
    from config import BertConfig

    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    vocab = tiny_vocab()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(BertConfig(
            vocab_size=len(vocab), hidden_size=hidden_size, num_hidden_layers=num_hidden_layers,
            num_attention_heads=num_attention_heads, intermediate_size=intermediate_size))
    model.save_pretrained(str(path))
    (path / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    return path


def course_rows(name, rows):
    """Return `rows` tuples (id, text, ...[, label]) of strings for the course file `name`, the same at every call."""
    words = WORDS.split()

    def sentence(i):
        return " ".join(words[(i * 7 + j * 3) % len(words)] for j in range(4 + i % 5))

    stem, columns = name.split(".")[0], COURSE_FILES[name]
    texts = {
        i: (sentence(i),) if "sentence" in columns else (sentence(i), sentence(i + i % 2)) for i in range(rows)}
    labels = {"sentiment": lambda i: str(i % (2 if "cfimdb" in name else 5)), "is_duplicate": lambda i: f"{i % 2}.0",
              "similarity": lambda i: f"{i % 6}.0"}
    label = labels.get(columns[-1])
    return [(f"{stem}{i:04d}", *texts[i]) + ((label(i),) if label else ()) for i in range(rows)]


def write_course_file(path, rows):
    """Write `rows` (tuples of strings, the id first) under the header that the course gives the file of that name."""
    columns = COURSE_FILES[path.name]
    if columns == ("id", "sentence"):  # the odd header of the SST and CFIMDB test files: two index columns
        lines = ["0\t\tid\tsentence"] + ["\t".join((str(i + 1), f"{i}.0", *row)) for i, row in enumerate(rows)]
    else:
        lines = ["\t".join(("", *columns))] + ["\t".join((str(i), *row)) for i, row in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_course_files(directory, rows=8):
    """Write all twelve course files, each with `rows` synthetic rows, into `directory` (made if absent); return it."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name in COURSE_FILES:
        write_course_file(directory / name, course_rows(name, rows))
    return directory


def task_batch(task, pretrained):
    """Return a batch of four rows of `task` with padding in it, their labels apart, tokenized as for `pretrained`."""
    from datasets import SentenceClassificationDataset, SentencePairDataset

    texts = [("a good film", "a good film"), ("a dull plot", "how can i cook soup"), ("the cat sits", "the cat sings"),
             ("a man reads a book", "a car near the river")]
    args = SimpleNamespace(pretrained=pretrained)
    if task == "sst":
        data = SentenceClassificationDataset([(a, i, f"id{i}") for i, (a, _) in enumerate(texts)], args)
    else:
        rows = [(a, b, (i + 1) % 2, f"id{i}") for i, (a, b) in enumerate(texts)]
        data = SentencePairDataset(rows, args, isRegression=task == "sts")
    return {**data.collate_fn(data.dataset), "task": task}


def forward_of(model, batch, loss=None):
    """Return the forward pass of a test's batch, which says its task by batch["task"]."""
    from extensions.forward import ForwardPass

    return ForwardPass(model, batch["task"], inputs_of(batch), loss)


def inputs_of(batch):
    """Return a test's batch as code gets it: without its task and loss."""
    return {name: value for name, value in batch.items() if name not in ("task", "loss")}


def part_of(batch, share=1.0, weight=1.0):
    """Return the Part of a training step that a test's batch is."""
    from extensions.schedules._steps import Part

    return Part(inputs_of(batch), share, weight)


def losses_of_20_steps(model, loss_of):
    """Train `model` for 20 steps on `loss_of()`, a loss with its graph; return the losses, floats."""
    from optimizer import AdamW

    optimizer, losses = AdamW(model.parameters(), lr=1e-2), []
    for _ in range(20):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="session")
def bert_dir(tmp_path_factory):
    """Return the directory, a string, of a random BERT of width 24 with the tiny vocabulary."""
    return str(tiny_bert_dir(tmp_path_factory.mktemp("bert"), hidden_size=24, num_attention_heads=2))


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """Return the directory of a tiny random BERT; its parent is a cache in which it is called bert-base-uncased."""
    return tiny_bert_dir(tmp_path_factory.mktemp("minbert-cache") / "bert-base-uncased")


@pytest.fixture
def tiny_cache(tiny_bert, monkeypatch):
    """Let the default name `bert-base-uncased` mean the tiny BERT, and any download fail at once."""
    monkeypatch.setenv("MINBERT_CACHE", str(tiny_bert.parent))
    monkeypatch.setenv("MINBERT_HUB", "http://127.0.0.1:9")
    import datasets

    datasets.load_tokenizer.cache_clear()  # the name may have meant another cache's tokenizer before, and will again
    yield tiny_bert.parent
    datasets.load_tokenizer.cache_clear()


@pytest.fixture
def course_folder(tmp_path, tiny_cache, monkeypatch):
    """Stand in a folder with the course's `data/` (8 rows a file) and the tiny BERT as `bert-base-uncased`."""
    write_course_files(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path
