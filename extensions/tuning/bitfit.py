"""BitFit: tune the biases alone (Ben Zaken, Goldberg and Ravfogel 2022, https://arxiv.org/abs/2106.10199)."""

from extensions.encoder import freeze
from extensions.technique import Joined, Technique

# A word for a bias of a layer -> the part that has it; the paper's b_q, b_k, b_v, b_m1, b_LN1, b_m2, b_m3, b_LN2.
PARTS = {"query": "query", "key": "key", "value": "value", "attention": "attention_dense",
         "attention-norm": "attention_layer_norm", "intermediate": "interm_dense", "output": "out_dense",
         "output-norm": "out_layer_norm"}


def bitfit(bert, targets="all"):
    """Freeze what was loaded of `bert`, all but the biases: those of linear layers and the shifts of layer norms.

    `targets` is all, or words of PARTS joined by +; `query+intermediate` is the paper's half-sized choice. The bias of
    the pooler is tuned in any case, as in the authors' code, that of the embeddings' norm with all. The paper's
    learning rates are 1e-4 to 1e-3. It is the same function to begin with. Raises ValueError for a word of which no
    bias is left, or beside diff pruning.
    """
    parts = [""] if targets == "all" else [f".{PARTS[word]}" for word in targets.split("+")]
    biases = []
    for part in parts:
        # Also within a module of that name, as gated feed-forwards have them.
        found = [p for name, p in bert.named_parameters() if name.endswith(".bias") and f"{part}." in f".{name}"]
        if not found:
            raise ValueError(f"targets={targets}: the encoder has no bias of {part.strip('.') or 'its own'} any more")
        biases += found
    if any(name.endswith("bias_delta") for name, _ in bert.named_parameters()):
        raise ValueError("diff tunes the biases already: leave one of the two out")
    freeze(bert)
    for bias in biases:
        bias.requires_grad_()
    bert.pooler_dense.bias.requires_grad_()


BITFIT = Technique(
    "bitfit", bitfit, paper="Ben Zaken, Goldberg and Ravfogel 2022, arxiv.org/abs/2106.10199",
    does="Freezes the encoder but for its biases.",
    use="To train few weights and add none, in long runs. Far below full tuning in 324 steps (.625).",
    aka=("bias", "biases", "bias-only"), likely={"biases": "targets", "parts": "targets", "terms": "targets"},
    valid={"targets": Joined(PARTS, ("all",))}, freezes=True)
