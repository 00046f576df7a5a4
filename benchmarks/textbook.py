"""Multitask fine-tuning as the textbook has it, the slowest contender of `benchmarks.throughput`.

Nothing is done for speed: fp32, softmax attention written out, a pass for each text of a pair, WordPiece in the loop,
AdamW as a loop over the parameters, rows in random order. It shares no code with the project and needs torch alone.

Legend of the shape comments:  B batch · T tokens · C hidden size · H heads · D = C // H
"""

import json
import math
import random
import time
import unicodedata

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, gelu, mse_loss

LOGITS = {"sst": 5, "para": 1, "sts": 1}


def words(text):
    """Return the words and punctuation marks of a text in an alphabet, in lower case and without accents."""
    found = []
    for chunk in text.lower().split():
        inside = False
        for char in unicodedata.normalize("NFD", chunk):
            category = unicodedata.category(char)
            if category == "Mn":
                continue
            mark = category.startswith("P") or (char.isascii() and not char.isalnum())
            if inside and not mark:
                found[-1] += char
            else:
                found.append(char)
            inside = not mark
    return found


def pieces(word, vocab):
    """Return the ids of a word's pieces, from the left the longest that the vocabulary has."""
    ids, start = [], 0
    while start < len(word):
        for end in range(len(word), start, -1):
            piece = word[start:end] if start == 0 else "##" + word[start:end]
            if piece in vocab:
                break
        else:
            return [vocab["[UNK]"]]
        ids.append(vocab[piece])
        start = end
    return ids


def encode(text, vocab):
    """Return the ids of [CLS] text [SEP]."""
    return [vocab["[CLS]"], *(i for word in words(text) for i in pieces(word, vocab)), vocab["[SEP]"]]


class Attention(nn.Module):
    """softmax(q kᵀ / √D + mask) v."""

    def __init__(self, C, H):
        super().__init__()
        self.H, self.query, self.key, self.value = H, nn.Linear(C, C), nn.Linear(C, C), nn.Linear(C, C)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x, mask):
        B, T, C = x.shape
        q, k, v = (layer(x).view(B, T, self.H, -1).transpose(1, 2) for layer in (self.query, self.key, self.value))
        scores = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(C // self.H) + mask  # (B, H, T, T)
        context = torch.matmul(self.dropout(torch.softmax(scores, dim=-1)), v)  # (B, H, T, D)
        return context.transpose(1, 2).contiguous().view(B, T, C)


class Layer(nn.Module):
    """Attention, add & norm, feed-forward, add & norm."""

    def __init__(self, C, H, inner):
        super().__init__()
        self.attention, self.dense, self.norm = Attention(C, H), nn.Linear(C, C), nn.LayerNorm(C)
        self.widen, self.narrow, self.out_norm = nn.Linear(C, inner), nn.Linear(inner, C), nn.LayerNorm(C)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x, mask):
        x = self.norm(x + self.dropout(self.dense(self.attention(x, mask))))
        return self.out_norm(x + self.dropout(self.narrow(gelu(self.widen(x)))))


class Model(nn.Module):
    """BERT with a linear head a task; pairs are scored from (u, v, |u - v|)."""

    def __init__(self, vocab_size, hidden_size, num_hidden_layers, num_attention_heads, intermediate_size):
        super().__init__()
        C = hidden_size
        self.word, self.position, self.side = nn.Embedding(vocab_size, C), nn.Embedding(512, C), nn.Embedding(2, C)
        self.norm, self.dropout = nn.LayerNorm(C), nn.Dropout(0.1)
        self.layers = nn.ModuleList(Layer(C, num_attention_heads, intermediate_size) for _ in range(num_hidden_layers))
        self.pooler = nn.Linear(C, C)
        self.heads = nn.ModuleDict({task: nn.Linear(C if task == "sst" else 3 * C, n) for task, n in LOGITS.items()})
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)

    def encode(self, ids, mask):
        """Return the pooled encodings (B, C) of ids (B, T)."""
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.dropout(self.norm(self.word(ids) + self.position(positions) + self.side(torch.zeros_like(ids))))
        additive = (1.0 - mask[:, None, None, :].float()) * -10000.0  # (B, 1, 1, T)
        for layer in self.layers:
            x = layer(x, additive)
        return torch.tanh(self.pooler(x[:, 0]))

    def forward(self, task, texts):
        """Return logits (B, n) of `texts`: one (ids, mask) for sentences, two for pairs."""
        encoded = [self.encode(ids, mask) for ids, mask in texts]
        if len(encoded) == 2:
            u, v = encoded
            encoded = [torch.cat([u, v, (u - v).abs()], dim=-1)]
        return self.heads[task](self.dropout(encoded[0]))


class AdamW:
    """Adam with decoupled weight decay, a parameter after the other."""

    def __init__(self, params, lr, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01):
        self.params, self.lr, self.betas, self.eps, self.weight_decay = list(params), lr, betas, eps, weight_decay
        self.states = {}

    def step(self):
        """Update every parameter that has a gradient."""
        beta1, beta2 = self.betas
        for p in self.params:
            if p.grad is None:
                continue
            t, m, v = self.states.get(p, (0, torch.zeros_like(p), torch.zeros_like(p)))
            t += 1
            m = beta1 * m + (1 - beta1) * p.grad
            v = beta2 * v + (1 - beta2) * p.grad * p.grad
            self.states[p] = t, m, v
            alpha = self.lr * math.sqrt(1 - beta2**t) / (1 - beta1**t)
            p.data = p.data - alpha * m / (v.sqrt() + self.eps)
            p.data = p.data - self.lr * self.weight_decay * p.data


class Textbook:
    """The contender: batches of rows in random order, trained on and scored from their texts."""

    def __init__(self, job):
        with open(job["rows"], encoding="utf-8") as file:
            given = json.load(file)
        self.rows, self.lengths = given["rows"], given["lengths"]  # {task: [[text, (second text,) label]]}
        with open(job["vocab"], encoding="utf-8") as file:
            self.vocab = {line.rstrip("\n"): i for i, line in enumerate(file)}
        torch.manual_seed(job["seed"])
        self.device = torch.device(job["device"])
        self.model = Model(**job["architecture"]).to(self.device)
        self.optimizer = AdamW(self.model.parameters(), lr=1e-5)
        self.tokenizing = [0, 0.0]  # texts, seconds
        self.startup, self.batches = {}, {}
        rng, size = random.Random(job["seed"]), job["batch_size"]
        for task, rows in self.rows.items():
            order = list(range(len(rows)))
            rng.shuffle(order)
            self.batches[task] = [order[i : i + size] for i in range(0, len(order), size)]
        self.score_batches = {task: [list(range(i, min(i + size, len(rows)))) for i in range(0, len(rows), size)]
                              for task, rows in self.rows.items()}

    def texts(self, task, batch):
        """Return the ids and masks (B, T) of a batch's texts, tokenized here and now: one, or for pairs two."""
        start = time.perf_counter()
        sides = []
        for side in range(1 if task == "sst" else 2):
            ids = [encode(self.rows[task][i][side], self.vocab)[:512] for i in batch]
            T = max(len(row) for row in ids)
            sides.append([torch.tensor([row + [0] * (T - len(row)) for row in ids]),
                          torch.tensor([[1] * len(row) + [0] * (T - len(row)) for row in ids])])
        self.tokenizing[0] += len(sides) * len(batch)
        self.tokenizing[1] += time.perf_counter() - start
        return sides

    def tokens(self, task, batch):
        """Return (real tokens, padded tokens) of a batch."""
        sides = list(zip(*(self.lengths[task][i] for i in batch)))
        return sum(map(sum, sides)), sum(max(side) * len(side) for side in sides)

    def train(self, task, batches):
        """Take a step for each of the batches."""
        self.model.train()
        for batch in batches:
            texts = [[tensor.to(self.device) for tensor in side] for side in self.texts(task, batch)]
            labels = torch.tensor([self.rows[task][i][-1] for i in batch], device=self.device)
            logits = self.model(task, texts)
            if task == "sst":
                loss = cross_entropy(logits, labels)
            elif task == "para":
                loss = binary_cross_entropy_with_logits(logits[:, 0], labels.float())
            else:
                loss = mse_loss(logits[:, 0], labels.float())
            self.model.zero_grad()
            loss.backward()
            self.optimizer.step()
            loss.item()  # the running loss of the progress bar

    @torch.no_grad()
    def score(self, task, batches):
        """Score the batches."""
        self.model.eval()
        for batch in batches:
            texts = [[tensor.to(self.device) for tensor in side] for side in self.texts(task, batch)]
            self.model(task, texts).tolist()

    def report(self):
        """Return what is peculiar to this contender."""
        return {"tokenized_texts_per_s": round(self.tokenizing[0] / self.tokenizing[1])}


if __name__ == "__main__":
    from benchmarks.stopwatch import serve

    serve(Textbook)
