"""The bucket sampler: every row once an epoch, seeded, capped, and little padding on the real files."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datasets import SentenceClassificationDataset
from engine import batching
from engine.batching import BucketBatchSampler, bucket_loader
from multitask_classifier import MultitaskBERT, complete, training_loaders
from tests.helpers.fixtures_tiny import tiny_bert_dir

LENGTHS = np.random.default_rng(0).integers(2, 60, size=1000)
ROWS = [("the film is good " * (1 + i % 7), i % 5, f"id{i}") for i in range(50)]


def flat(batches):
    return [i for batch in batches for i in batch]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [1, 8, 32, 2000])
def test_every_row_once_an_epoch(batch_size, shuffle):
    sampler = BucketBatchSampler(LENGTHS, batch_size, max_tokens=10**9, shuffle=shuffle)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert sorted(flat(batches)) == list(range(1000))
        assert len(batches) == len(sampler) == -(-1000 // batch_size)
        assert max(map(len, batches)) == min(batch_size, 1000)


def test_order_is_a_function_of_seed_and_epoch_alone():
    sampler = BucketBatchSampler(LENGTHS, 8, seed=3)
    orders = [sampler.batches(epoch) for epoch in range(3)]
    for seed in (0, 1):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        again = BucketBatchSampler(LENGTHS, 8, seed=3)
        again.set_epoch(2)
        assert list(again) == orders[2]
    assert flat(orders[0]) != flat(orders[1]) != flat(orders[2]) != flat(orders[0])
    # Not the same batches in another order either: rows meet other rows.
    assert {frozenset(batch) for batch in orders[0]} != {frozenset(batch) for batch in orders[1]}
    assert flat(BucketBatchSampler(LENGTHS, 8, seed=4).batches(0)) != flat(orders[0])
    widths = [LENGTHS[batch].max() for batch in orders[0]]
    assert abs(np.corrcoef(widths, np.arange(len(widths)))[0, 1]) < 0.3  # long and short batches come mixed


def test_evaluation_goes_longest_first():
    batches = BucketBatchSampler(LENGTHS, 64, shuffle=False).batches(0)
    assert np.all(np.diff(LENGTHS[flat(batches)]) <= 0)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("cap", [40, 100, 500])
def test_a_batch_holds_at_most_max_tokens(cap, shuffle):
    batches = BucketBatchSampler(LENGTHS, 32, max_tokens=cap, shuffle=shuffle).batches(0)
    assert sorted(flat(batches)) == list(range(1000))
    width = BucketBatchSampler(LENGTHS, 32, max_tokens=cap, shuffle=shuffle).width
    padded = [width(batch) * len(batch) for batch in batches]
    assert all(tokens <= cap or len(batch) == 1 for tokens, batch in zip(padded, batches, strict=True))
    assert np.mean(padded) > cap / 2  # and no fewer than need be


def test_padding_share_by_hand():
    sampler = BucketBatchSampler([5, 3, 4, 1], batch_size=2, shuffle=False)
    assert sampler.batches(0) == [[0, 2], [1, 3]]
    assert sampler.padding_share() == pytest.approx(1 - 13 / (5 * 2 + 3 * 2))


def test_loaders_leave_the_random_numbers_alone(tiny_cache):
    data = SentenceClassificationDataset(ROWS, SimpleNamespace())
    states = [random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()]
    loader = bucket_loader(data, 4, shuffle=True, seed=5)
    first = [batch["sent_ids"] for batch in loader]
    evaluated = [sent_id for batch in bucket_loader(data) for sent_id in batch["sent_ids"]]
    assert sorted(evaluated) == sorted(row[2] for row in ROWS)
    assert [batch["sent_ids"] for batch in loader] == first  # evaluation in between changes nothing
    assert [random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()] == states


class CountingEncoder(torch.nn.Module):
    """Stand in for BERT and count tokens: real ones and all."""

    def __init__(self, config):
        super().__init__()
        self.config, self.real, self.padded, self.largest = config, 0, 0, 0

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        B, T = input_ids.shape
        self.real += int(attention_mask.sum())
        self.padded += B * T
        self.largest = max(self.largest, B * T)
        C = self.config.hidden_size
        return {"last_hidden_state": torch.zeros(B, 1, C), "pooler_output": torch.zeros(B, C)}


@pytest.fixture(scope="module")
def small_bert(tmp_path_factory):
    return str(tiny_bert_dir(tmp_path_factory.mktemp("bert"), hidden_size=2, num_attention_heads=1))


@pytest.mark.parametrize("batch_size", [8, 32, 128])
@pytest.mark.parametrize("task, pair_encoding", [
    ("sst", "cross"), ("para", "cross"), ("sts", "cross"), ("para", "bi"), ("sts", "bi")])
def test_little_of_what_the_encoder_sees_is_padding(
        task, pair_encoding, batch_size, small_bert, course_dir):
    args = complete(SimpleNamespace(pretrained="minilm", data_dir=str(course_dir), tasks=[task], batch_size=batch_size,
                                    pair_encoding=pair_encoding))
    model = MultitaskBERT(SimpleNamespace(option="finetune", hidden_dropout_prob=0.0, pretrained=small_bert,
                                          pair_encoding=pair_encoding))
    encoder = model.bert = CountingEncoder(model.bert.config)
    loader = training_loaders(args)[task]
    with torch.no_grad():
        for batch in loader:
            model.logits(task, batch)
    print(f"{1 - encoder.real / encoder.padded:.1%} padding, at most {encoder.largest} tokens")  # shown on failure
    assert encoder.largest <= batching.MAX_TOKENS_TRAIN
    limit = 0.05 if batch_size <= 32 and pair_encoding == "cross" else 0.08
    assert 0 < 1 - encoder.real / encoder.padded < limit
    if pair_encoding == "cross":
        assert 1 - encoder.real / encoder.padded == pytest.approx(loader.batch_sampler.padding_share())
