"""Two tokenized texts joined on the device equal the pair tokenized as one, by our tokenizer and by transformers'."""

import random
from types import SimpleNamespace

import pytest
import torch

import datasets
from extensions.heads.pairs import swapped
from multitask_classifier import MultitaskBERT, pack_pairs
from tasks import PARAPHRASE, SIMILARITY, read_rows
from tests.helpers.fixtures_tiny import tiny_bert_dir
from tests.helpers.tokenizer_oracle import VOCAB, ask
from tokenizer import BertTokenizer

WORDS = "the a film is was very good bad cat dog".split()  # each is one token
NAMES = ("input_ids", "attention_mask", "token_type_ids")


@pytest.fixture(scope="module")
def tokenizer():
    return BertTokenizer.from_pretrained("minilm")


def alone(tokenizer, texts, extra=0):
    """Tokenize texts on their own; `extra` columns of padding more than need be."""
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    return [torch.nn.functional.pad(encoded[name], (0, extra)) for name in NAMES[:2]]


def assert_packs_like(answer, packed):
    """Assert that the packed tensors are the tokenizer's answer: values, widths, and whole numbers."""
    for name, ours in zip(NAMES, packed, strict=True):
        assert ours.dtype == torch.int64
        assert ours.tolist() == torch.as_tensor(answer[name]).tolist(), name


def all_small_pairs():
    """Return the pairs of texts of 0 to 9 words, all 100 of them, in random words."""
    draw = random.Random(0)
    texts = [" ".join(draw.choice(WORDS) for _ in range(n)) for n in range(10)]
    return [a for a in texts for _ in texts], [b for _ in texts for b in texts]


@pytest.mark.parametrize("max_length", [3, 4, 5, 6, 7, 8, 9, 12, 13, 20, 21, 512])
def test_small_pairs_equal_ours_and_transformers(max_length, tokenizer):
    pairs, options = all_small_pairs(), {"padding": True, "truncation": True, "max_length": max_length}
    packed = pack_pairs(*alone(tokenizer, pairs[0]), *alone(tokenizer, pairs[1]), max_length)
    assert packed[0].shape[1] == min(max_length, 9 + 9 + 3)
    assert_packs_like(tokenizer(*pairs, **options), packed)
    assert_packs_like(ask(how={"vocab": VOCAB}, method="__call__", calls=[(pairs, options)])[0], packed)


@pytest.mark.parametrize("max_length", [512, 65, 32])
def test_real_pairs_equal_ours_and_transformers(max_length, tokenizer, course_dir):
    rows = read_rows(course_dir / "quora-dev.csv", PARAPHRASE)
    rows = sorted(rows, key=lambda row: -len(row[0]) - len(row[1]))[:60] + rows[:60]
    rows += read_rows(course_dir / "sts-dev.csv", SIMILARITY)[:60]
    pairs, options = ([row[0] for row in rows], [row[1] for row in rows]), {
        "padding": True, "truncation": True, "max_length": max_length}
    packed = pack_pairs(*alone(tokenizer, pairs[0]), *alone(tokenizer, pairs[1]), max_length)
    assert_packs_like(tokenizer(*pairs, **options), packed)
    assert_packs_like(ask(how={"vocab": VOCAB}, method="__call__", calls=[(pairs, options)])[0], packed)


def test_one_pair_by_hand():
    ids1, mask1 = torch.tensor([[101, 11, 12, 13, 102, 0]]), torch.tensor([[1, 1, 1, 1, 1, 0]])
    ids2, mask2 = torch.tensor([[101, 21, 102]]), torch.tensor([[1, 1, 1]])
    input_ids, attention_mask, token_type_ids = pack_pairs(ids1, mask1, ids2, mask2, 512)
    assert input_ids.tolist() == [[101, 11, 12, 13, 102, 21, 102]]
    assert attention_mask.tolist() == [[1] * 7]
    assert token_type_ids.tolist() == [[0, 0, 0, 0, 0, 1, 1]]
    assert pack_pairs(ids1, mask1, ids2, mask2, 6)[0].tolist() == [[101, 11, 12, 102, 21, 102]]
    assert pack_pairs(ids2, mask2, ids1, mask1, 6)[0].tolist() == [[101, 21, 102, 11, 12, 102]]


@pytest.mark.parametrize("max_length", [9, 512])
@pytest.mark.parametrize("extra", [(0, 5), (5, 0), (3, 8)])
def test_padding_of_either_side_changes_nothing(extra, max_length, tokenizer):
    texts = ["a film", "the cat is very good", "", "dog"], ["a very bad dog", "cat", "the film", ""]
    bare = pack_pairs(*alone(tokenizer, texts[0]), *alone(tokenizer, texts[1]), max_length)
    wider = pack_pairs(*alone(tokenizer, texts[0], extra[0]), *alone(tokenizer, texts[1], extra[1]), max_length)
    assert all(a.equal(b) for a, b in zip(bare, wider, strict=True))
    # A row is what it is alone, whatever stands beside it in the batch.
    for i, pair in enumerate(zip(*texts, strict=True)):
        one = pack_pairs(*alone(tokenizer, pair[:1]), *alone(tokenizer, pair[1:]), max_length)
        T = one[0].shape[1]
        assert all(a[0].equal(b[i, :T]) and not b[i, T:].any() for a, b in zip(one, bare, strict=True))


@pytest.mark.parametrize("max_length", [6, 7, 8, 9, 12])
def test_pairs_of_a_data_set_are_cut_as_the_tokenizer_cuts_them(max_length, tokenizer):
    a, b = all_small_pairs()
    rows = list(zip(a, b, map(str, range(len(a))), strict=True))
    data = datasets.SentencePairTestDataset(rows, SimpleNamespace(pretrained="minilm", max_length=max_length))
    batch = data.collate_fn(rows)
    packed = pack_pairs(*(batch[f"{name}_{side}"] for side in (1, 2) for name in ("token_ids", "attention_mask")),
                        max_length)
    assert_packs_like(tokenizer(a, b, padding=True, truncation=True, max_length=max_length), packed)


@pytest.mark.parametrize("method, head", [
    ("predict_paraphrase", "paraphrase_head"), ("predict_similarity", "similarity_head")])
def test_the_model_sees_the_tokenized_pair_with_its_types_and_positions_running_on(method, head, tmp_path):
    bert = str(tiny_bert_dir(tmp_path, hidden_size=24, num_attention_heads=4))
    config = SimpleNamespace(pretrained=bert, option="finetune", hidden_dropout_prob=0.3, pooling="pooler")
    model, tokenizer = MultitaskBERT(config).eval(), BertTokenizer.from_pretrained(bert)
    texts = ["the film is slow", "a cat"], ["the film", "how can i fix a car"]
    pair = tokenizer(*texts, padding=True, return_tensors="pt")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # an encoder fresh from its initialisation hardly heeds what it reads
            parameter.normal_()
        hidden = model.bert.encode(model.bert.embed(pair["input_ids"], pair["token_type_ids"]), pair["attention_mask"])
        expected = getattr(model, head)(torch.tanh(model.bert.pooler_dense(hidden[:, 0]))).squeeze(1)
        logits = getattr(model, method)(*alone(tokenizer, texts[0]), *alone(tokenizer, texts[1]))
        without_types = model(pair["input_ids"], pair["attention_mask"], task="para")
    torch.testing.assert_close(logits, expected)
    assert (getattr(model, head)(without_types).squeeze(1) - expected).abs().min() > 1e-2


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.bool])
def test_masks_of_any_type_serve(dtype, tokenizer):
    ids1, mask1 = alone(tokenizer, ["a film", "the cat is very good"])
    ids2, mask2 = alone(tokenizer, ["a dog", "a"])
    expected = pack_pairs(ids1, mask1, ids2, mask2, 9)
    packed = pack_pairs(ids1, mask1.to(dtype), ids2, mask2.to(dtype), 9)
    assert [tensor.tolist() for tensor in packed] == [tensor.tolist() for tensor in expected]
    assert {packed[0].dtype, packed[2].dtype} <= {torch.int64, torch.int32}  # embeddings take nothing else


@pytest.mark.parametrize("pair_encoding", ["cross", "bi"])
def test_a_row_of_padding_alone_gives_a_number(pair_encoding, tmp_path):
    bert = str(tiny_bert_dir(tmp_path, hidden_size=24, num_attention_heads=4))
    model = MultitaskBERT(SimpleNamespace(pretrained=bert, option="finetune", hidden_dropout_prob=0.0,
                                          pooling="mean", pair_encoding=pair_encoding)).eval()
    ids1, mask1 = torch.tensor([[101, 900, 102], [0, 0, 0]]), torch.tensor([[1, 1, 1], [0, 0, 0]])
    scores = model.predict_similarity(ids1, mask1, ids1, mask1)
    alone = model.predict_similarity(ids1[:1], mask1[:1], ids1[:1], mask1[:1])
    assert scores.isfinite().all()
    torch.testing.assert_close(scores[:1], alone)


@pytest.mark.parametrize("max_length", [12, 512])
def test_swapped_is_packing_the_texts_in_the_other_order(tokenizer, max_length):
    firsts, seconds = (alone(tokenizer, texts) for texts in all_small_pairs())
    batch = dict(zip(("token_ids", "attention_mask", "token_type_ids"),
                     pack_pairs(*firsts, *seconds, max_length), strict=True))
    there = swapped({**batch, "labels": 3})
    back = swapped(there)
    assert all(back[name].equal(tensor) for name, tensor in batch.items()) and there["labels"] == 3
    if max_length == 512:
        for ours, expected in zip((there["token_ids"], there["attention_mask"], there["token_type_ids"]),
                                  pack_pairs(*seconds, *firsts, max_length), strict=True):
            assert ours.equal(expected)
    apart = {"token_ids_1": firsts[0], "attention_mask_1": firsts[1], "token_ids_2": seconds[0],
             "attention_mask_2": seconds[1], "labels": 1}
    assert [swapped(apart)[name] is apart[name.translate(str.maketrans("12", "21"))] for name in apart] == [True] * 5
