"""LoRA: low-rank adaptation of linear layers (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

import math

import torch.nn as nn
import torch.nn.functional as F

from extensions.encoder import freeze
from extensions.technique import Joined, Layers, Range, Technique
from extensions.tuning._linears import AdaptedLinear, adapt_linears, merge, unmerge

# word of `targets` -> how the names of its linear layers end, below an encoder layer
TARGETS = {"query": ["self_attention.query"], "key": ["self_attention.key"], "value": ["self_attention.value"],
           "attention-output": ["attention_dense"], "ffn": ["interm_dense", "out_dense"]}


class LoRALinear(AdaptedLinear):
    """y = W x + b + s B A dropout(x), with lora_A (r, in_features) and lora_B (out_features, r), which is 0 at first.

    s = alpha / r, or alpha / √r with `rslora`. A is drawn as in the authors' code (uniformly, Kaiming's a = √5), where
    the paper has a Gaussian. Checkpoint keys: weight and bias as before, lora_A, lora_B.
    """

    def __init__(self, linear, rank, alpha, dropout, rslora):
        super().__init__(linear)
        self.scaling = alpha / (math.sqrt(rank) if rslora else rank)
        self.lora_A = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
        self.lora_B = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        self.lora_dropout = nn.Dropout(dropout)
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def low_rank(self, x):
        """Return s B A dropout(x): (..., out_features)."""
        return F.linear(self.scaling * F.linear(self.lora_dropout(x), self.lora_A), self.lora_B)

    def adapted(self, x):
        """Map x (..., in_features) to (..., out_features)."""
        return F.linear(x, self.weight, self.bias) + self.low_rank(x)

    def effective(self):
        """Return (W + s B A, b)."""
        return self.weight + self.scaling * (self.lora_B @ self.lora_A), self.bias


def put_lora(kind, bert, rank, alpha, dropout, targets, layers, rslora):
    """Freeze the encoder and put a `kind` of LoRALinear into it."""
    freeze(bert)
    for word in dict.fromkeys(targets.split("+")):
        adapt_linears(bert, TARGETS[word], layers, lambda linear: kind(linear, rank, alpha, dropout, rslora))


def lora(bert, rank=8, alpha=16.0, dropout=0.0, targets="query+value", layers="all", rslora=False):
    """Freeze the encoder and give linear layers a low-rank change that is trained in place of their weights.

    `targets` joins words of `TARGETS` by +; `layers` is all, first-N, mid-N or last-N (Peng, Yuan and Wang 2024: query,
    key and value of four layers). `rslora`: rank-stabilized scaling (Kalajdzievski 2023, arxiv.org/abs/2312.03732). Hu
    et al.'s RoBERTa has alpha = rank = 8. `merge(bert)` and `unmerge(bert)` add the change to the weights and take it
    out again; `train` and `eval` never do. Nothing changes until training. Query, key and value are then three products
    again, not one (packed-attention).
    """
    put_lora(LoRALinear, bert, rank, alpha, dropout, targets, layers, rslora)


VALID = {"rank": Range(1), "alpha": Range(above=0), "dropout": Range(below=1), "targets": Joined(TARGETS),
         "layers": Layers()}
LIKELY = {"r": "rank", "lora_r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "p": "dropout",
          "target_modules": "targets", "modules": "targets", "use_rslora": "rslora",
          "layers_to_transform": "layers"}
LORA = Technique(
    "lora", lora, paper="Hu et al. 2021, arxiv.org/abs/2106.09685; rslora: Kalajdzievski 2023, 2312.03732",
    does="Freezes the encoder; linear layers learn a change of low rank.",
    use="To train few weights: rank=32,rslora=true scores as full tuning on a tenth, -.003 on all.",
    aka=("low-rank", "peft", "qlora"), valid=VALID, likely=LIKELY, freezes=True)

__all__ = ["LoRALinear", "TARGETS", "lora", "merge", "put_lora", "unmerge"]
