"""Bucket widths against every other choice, and batches of few shapes that waste nothing."""

import itertools

import numpy as np
import pytest

from engine import batching
from engine.batching import BucketBatchSampler, bucket_edges


def padded_tokens(lengths, edges, batch_size=1):
    """Return the tokens of all batches when each row waits for the narrowest width that can still batch it."""
    tokens = waiting = 0
    for low, edge in zip([0, *edges], edges):
        waiting += np.sum((lengths > low) & (lengths <= edge))
        left = 0 if edge == edges[-1] else waiting % batch_size
        tokens, waiting = tokens + edge * (waiting - left), left
    return tokens


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("seed", range(10))
def test_no_other_widths_have_less_padding(seed, batch_size):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 14, size=rng.integers(1, 60)) ** rng.integers(1, 3)
    widths = np.unique(lengths)
    for count in range(1, 6):
        edges = bucket_edges(lengths, count, batch_size)
        assert len(edges) == min(count, len(widths)) and edges[-1] == lengths.max() and np.isin(edges, widths).all()
        assert np.all(np.diff(edges) > 0)
        others = itertools.combinations(widths[:-1], len(edges) - 1)
        assert padded_tokens(lengths, edges, batch_size) == min(
            padded_tokens(lengths, [*other, widths[-1]], batch_size) for other in others)


def test_widths_by_hand():
    lengths = [3] * 10 + [4] + [9] * 5 + [30]
    assert bucket_edges(lengths, 1).tolist() == [30]
    assert bucket_edges(lengths, 2).tolist() == [9, 30]
    assert bucket_edges(lengths, 3).tolist() == [3, 9, 30]  # 114 tokens; 119 with [4, 9, 30]
    assert bucket_edges(lengths, 9).tolist() == [3, 4, 9, 30]
    assert bucket_edges([7, 7], 16).tolist() == [7] and len(bucket_edges([], 16)) == 0


@pytest.mark.parametrize("batch_size, max_tokens", [(8, 10**9), (32, 10**9), (32, 600), (3, 100)])
def test_few_shapes_the_same_in_every_epoch(batch_size, max_tokens):
    lengths = np.random.default_rng(1).gamma(4, 6, size=2000).astype(int) + 3
    sampler = BucketBatchSampler(lengths, batch_size, max_tokens)
    assert len(sampler.edges) == batching.BUCKETS
    shapes = []
    for epoch in range(3):
        batches = sampler.batches(epoch)
        assert sorted(itertools.chain(*batches)) == list(range(2000))
        shapes.append(sorted((len(batch), sampler.width(batch)) for batch in batches))
        assert all(lengths[batch].max() <= sampler.width(batch) for batch in batches)
        # A batch is full for its width or, where long rows go in smaller batches, for a wider one; one may be less.
        full = {min(batch_size, max(1, max_tokens // edge)) for edge in sampler.edges}
        assert sum(len(batch) not in full for batch in batches) <= 1
    assert shapes[0] == shapes[1] == shapes[2] if max_tokens == 10**9 else len(set(shapes[0])) <= 2 * batching.BUCKETS
    assert sampler.padding_share() == pytest.approx(1 - lengths.sum() / sum(rows * width for rows, width in shapes[0]))


def test_what_is_left_over_moves_up():
    sampler = BucketBatchSampler([5] * 5 + [9] * 4 + [12] * 3, batch_size=4)
    assert sampler.edges.tolist() == [5, 9, 12]
    for epoch in range(5):
        shapes = sorted((sampler.width(batch), len(batch)) for batch in sampler.batches(epoch))
        assert shapes == [(5, 4), (9, 4), (12, 4)]
    left_over = {i for epoch in range(40) for batch in sampler.batches(epoch) for i in batch
                 if sampler.width(batch) == 9 and i < 5}
    assert left_over == set(range(5))  # each of the five shortest now and then


def test_the_widths_of_evaluation_are_the_longest_rows():
    sampler = BucketBatchSampler([5, 30, 7, 7, 8], batch_size=2, shuffle=False)
    assert [sampler.width(batch) for batch in sampler] == [30, 7, 5]


def test_nothing_to_batch():
    for shuffle in (True, False):
        assert BucketBatchSampler([], 8, shuffle=shuffle).batches(0) == []
