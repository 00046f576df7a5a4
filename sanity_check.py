"""Check bert.py against the outputs of transformers; exit 0 and say which parts ran when all is right.

1. A small fixed BERT, shipped in sanity_check.data, from its embeddings layer by layer to its pooler.
2. all-MiniLM-L6-v2, if the package with its weights is installed (setup.sh does it).
3. bert-base-uncased against the course's reference values, if it is in the cache, or with `--download`.

tests/make_sanity_data.py made sanity_check.data.
"""

import importlib.util
import sys
from pathlib import Path

import torch

from base_bert import load_pickle
from bert import BertModel
from config import BertConfig
from files.downloads import default_cache_dir
from files.errors import Parser, UserError, run_script
from files.pretrained import PACKAGE, PACKAGED_MODEL, SAFE_WEIGHTS_NAME, WEIGHTS_NAME, pretrained_file
from utils import get_extended_attention_mask

DATA = Path(__file__).resolve().parent / "sanity_check.data"

# "hello world" and "hello neural network for NLP", and what bert-base-uncased makes of them.
COURSE_IDS = [[101, 7592, 2088, 102, 0, 0, 0, 0], [101, 7592, 15756, 2897, 2005, 17953, 2361, 102]]
COURSE_POOLER_OUTPUT = [  # [:, :8]
    [-0.906153, -0.311153, -0.621654, 0.774093, 0.289866, -0.190243, 0.924708, 0.181801],
    [-0.804259, -0.286005, -0.282890, 0.491087, 0.170097, -0.147883, 0.633062, 0.070926],
]
COURSE_LAST_HIDDEN_STATE = [0.645269, -0.115473, -0.436594, 0.339301, -0.399916, -0.651165, 0.698182, -0.982277]

EMBED = "word + position + token-type embedding, then layer norm"
ATTENTION = "softmax(q k^T / sqrt(D) + mask) v in every head, D = C // H; no dropout in evaluation"
LAYER = "two times: dense, dropout, add the input, then layer norm; GELU after interm_dense"
POOLER = "tanh(pooler_dense(hidden state of the first token))"
MODEL = "its parts are right, so see how encode and forward put them together"


class Mismatch(Exception):
    """A value that is not what it should be."""


class Skipped(Exception):
    """Why a part of the check cannot run here."""


def compare(what, advice, actual, expected, mask=None, atol=1e-5, rtol=0.0):
    """Return the largest difference of two tensors; raise Mismatch when it is out of tolerance.

    With a `mask` (B, T), only tokens where it is 1 count; what a model makes of padding is its own affair.
    """
    if actual.shape != expected.shape:
        raise Mismatch(f"{what} has shape {tuple(actual.shape)}, expected {tuple(expected.shape)}: {advice}")
    if mask is not None:
        actual, expected = (torch.where(mask[:, :, None] == 1, values, 0.0) for values in (actual, expected))
    difference = (actual - expected).abs()
    if not torch.allclose(actual, expected, atol=atol, rtol=rtol):
        index = tuple(int(i) for i in torch.unravel_index(difference.argmax(), difference.shape))
        raise Mismatch(f"{what}{list(index)} is {actual[index]:.6f}, expected {expected[index]:.6f}: {advice}")
    return difference.max().item()


def check_small(data):
    """Compare the shipped model's parts, each given the right input, then the whole; return the largest difference."""
    model = BertModel.from_pretrained(str(DATA), config=BertConfig(**data["config"]), state_dict=data["weights"])
    input_ids, mask, states = data["input_ids"], data["attention_mask"], data["hidden_states"]
    additive_mask = get_extended_attention_mask(mask, states.dtype)

    largest = [
        compare("embed", EMBED, model.embed(input_ids), states[0], mask),
        compare("bert_layers[0].self_attention", ATTENTION,
                model.bert_layers[0].self_attention(states[0], additive_mask), data["self_attention"], mask),
    ]
    for i, layer in enumerate(model.bert_layers):
        largest.append(compare(f"bert_layers[{i}]", LAYER, layer(states[i], additive_mask), states[i + 1], mask))
    outputs = model(input_ids, mask)
    largest += [
        compare("last_hidden_state", MODEL, outputs["last_hidden_state"], states[-1], mask),
        compare("pooler_output", POOLER, outputs["pooler_output"], data["pooler_output"]),
    ]
    outputs = model(input_ids, mask, token_type_ids=data["token_type_ids"])
    largest += [
        compare("last_hidden_state of a pair", EMBED,
                outputs["last_hidden_state"], data["pair_last_hidden_state"], mask),
        compare("pooler_output of a pair", POOLER, outputs["pooler_output"], data["pair_pooler_output"]),
    ]
    return max(largest)


def check_minilm(data):
    """Compare the packaged model's outputs for the course's sentences; return the largest difference."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise Skipped(f"the package {PACKAGE} is not installed; `. ./setup.sh` does it")
    model = BertModel.from_pretrained(PACKAGED_MODEL)
    input_ids = torch.tensor(COURSE_IDS)
    mask = (input_ids != 0).long()
    outputs = model(input_ids, mask)
    return max(
        compare("last_hidden_state", MODEL, outputs["last_hidden_state"], data["last_hidden_state"], mask),
        compare("pooler_output", POOLER, outputs["pooler_output"], data["pooler_output"]),
    )


def check_bert_base(download):
    """Compare bert-base-uncased with the course's reference values; return the largest difference."""
    if not download:
        try:
            pretrained_file("bert-base-uncased", (SAFE_WEIGHTS_NAME, WEIGHTS_NAME), local_files_only=True)
        except UserError:
            raise Skipped(f"not in the cache {default_cache_dir()}; --download fetches it, 440 MB") from None
    model = BertModel.from_pretrained("bert-base-uncased", local_files_only=not download)
    input_ids = torch.tensor(COURSE_IDS)
    outputs = model(input_ids, (input_ids != 0).long())
    tolerance = {"atol": 1e-5, "rtol": 1e-3}
    advice = f"the weights differ from the published ones, or so does the model; see {default_cache_dir()}"
    return max(
        compare("pooler_output[:, :8]", advice, outputs["pooler_output"][:, :8],
                torch.tensor(COURSE_POOLER_OUTPUT), **tolerance),
        compare("last_hidden_state[1, 7, :8]", advice, outputs["last_hidden_state"][1, 7, :8],
                torch.tensor(COURSE_LAST_HIDDEN_STATE), **tolerance),
    )


@torch.no_grad()
def main(argv=None):
    """Run the three parts and print what became of each; exit code 1 when one fails."""
    parser = Parser(description="Check bert.py against stored outputs of transformers.")
    parser.add_argument("--download", action="store_true", help="fetch bert-base-uncased if it is not in the cache")
    args = parser.parse_args(argv)

    data = load_pickle(DATA, "Get the published file: git checkout sanity_check.data")
    if not isinstance(data, dict) or not all(isinstance(data.get(name), dict) for name in ("small", "minilm")):
        raise UserError(f"{DATA} does not hold the outputs to compare with; git checkout sanity_check.data")
    parts = {
        "small BERT (shipped)": lambda: check_small(data["small"]),
        "all-MiniLM-L6-v2 (package)": lambda: check_minilm(data["minilm"]),
        "bert-base-uncased (course values)": lambda: check_bert_base(args.download),
    }
    results = {"ok": 0, "skipped": 0, "FAILED": 0}
    for name, check in parts.items():
        try:
            result, detail = "ok", f"largest difference {check():.1e}"
        except Skipped as reason:
            result, detail = "skipped", reason
        except Mismatch as error:
            result, detail = "FAILED", error
        results[result] += 1
        print(f"{name}: {result}, {detail}")
    if results["FAILED"]:
        sys.exit("sanity check failed")
    print(f"sanity check passed: {results['ok']} parts ran, {results['skipped']} skipped")


if __name__ == "__main__":
    run_script(main)
