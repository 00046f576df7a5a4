"""Part 2: one BERT for sentiment (SST), paraphrase (Quora) and similarity (STS), trained together.

Legend of the shape comments:  B batch · T tokens · C hidden size
"""

import os
import re
import sys
from types import SimpleNamespace

import torch
import torch.nn as nn

import distributed
import evaluation
from arguments import (
    ArgumentParser,
    add_arguments,
    check_tokenizer,
    note_length,
    note_weights,
    number,
    parse,
    path_name,
    require_outputs,
    with_defaults,
    with_run_dir,
)
from batching import MAX_TOKENS_TRAIN, bucket_loader
from checkpoint import load_checkpoint, load_encoder, read_config, require_room, restoring, save_model, with_stored
from datasets import SentenceClassificationDataset, SentencePairDataset, load_multitask_data
from engine import SEEN_ROWS, autocast, fit, make_optimizer
from evaluation import TASKS, model_eval_multitask, multitask_loaders, overall_score
from extensions import SCHEDULES, TASK_LOSSES
from files import UserError, run_script
from reading import FORMATS, read_sound, require_files
from utils import get_device, seed_everything

BERT_HIDDEN_SIZE = 768  # a name of the course; the encoder's own config tells its size
N_SENTIMENT_CLASSES = 5

ROOT = os.path.dirname(os.path.abspath(__file__))
LEARNING_RATES = {"pretrain": 1e-3, "finetune": 7e-6}
LOSSES = {"sst": "ce", "para": "bce", "sts": "mse"}
FILES = {"sst": "ids-sst-{}.csv", "para": "quora-{}.csv", "sts": "sts-{}.csv"}


def pool_mean(output, attention_mask):
    """Return the mean of the last hidden states over real tokens, in fp32: (B, C)."""
    mask = attention_mask.unsqueeze(-1).float()  # (B, T, 1)
    return (output["last_hidden_state"].float() * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


POOLERS = {
    "cls": lambda output, attention_mask: output["last_hidden_state"][:, 0],
    "mean": pool_mean,
    "pooler": lambda output, attention_mask: output["pooler_output"],
}


def pack_pairs(input_ids_1, attention_mask_1, input_ids_2, attention_mask_2, max_length):
    """Join [CLS] a [SEP] (B, T1) and [CLS] b [SEP] (B, T2) row by row to [CLS] a [SEP] b [SEP].

    Returns (input_ids, attention_mask, token_type_ids), each (B, T) with T <= max_length; the types are
    0 for the first text and 1 for the second. Too long a pair loses tokens from the end of its longer
    text first. Equal to tokenizing the pair of texts.
    """
    attention_mask_1, attention_mask_2 = attention_mask_1.long(), attention_mask_2.long()
    # (B,) tokens of the texts themselves; a row of padding alone has none
    a, b = ((mask.sum(1) - 2).clamp(min=0) for mask in (attention_mask_1, attention_mask_2))
    budget = max_length - 3  # the one [CLS] and two [SEP] always stay
    shorter = torch.minimum(torch.minimum(a, b), torch.full_like(a, budget // 2))
    longer = torch.minimum(torch.maximum(a, b), budget - shorter)
    a, b = (torch.where(a <= b, shorter, longer).unsqueeze(1), torch.where(a <= b, longer, shorter).unsqueeze(1))

    # The width is a number on the host: the one wait for the device in a pair's forward pass.
    position = torch.arange(int((a + b).max()) + 3, device=a.device).unsqueeze(0)  # (1, T)
    first_end, second_end = a + 1, a + b + 2  # (B, 1): the places of the two [SEP]
    sources = torch.cat([input_ids_1, input_ids_2], dim=1)  # (B, T1 + T2)
    place = torch.where(position <= first_end, position, input_ids_1.shape[1] + position - first_end)
    input_ids = sources.gather(1, place.clamp(max=sources.shape[1] - 1))
    separator = input_ids_1.gather(1, (attention_mask_1.sum(1, keepdim=True) - 1).clamp(min=0))  # (B, 1)
    input_ids = torch.where((position == first_end) | (position == second_end), separator, input_ids)

    attention_mask = (position <= second_end).long()
    token_type_ids = (position > first_end).long() * attention_mask
    return input_ids * attention_mask, attention_mask, token_type_ids


def head(in_features, hidden_size, out_features, dropout):
    """Return a head of two layers: (B, in_features) to (B, out_features)."""
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(in_features, hidden_size), nn.LeakyReLU(),
                         nn.Dropout(dropout), nn.Linear(hidden_size, out_features))


class CosineHead(nn.Module):
    """scale · cos(u, v) + bias, with scale and bias learned (Reimers and Gurevych 2019, section 3)."""

    def __init__(self, scale, bias):
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.tensor(scale)), nn.Parameter(torch.tensor(bias))

    def forward(self, u, v):
        return (self.scale * torch.cosine_similarity(u, v, dim=-1) + self.bias).unsqueeze(-1)  # (B, 1)


class MultitaskBERT(nn.Module):
    """One encoder, three heads of two layers.

    `config` (a namespace, or a dict as loaded from a checkpoint) has `hidden_dropout_prob` and `option`
    ("pretrain" freezes BERT, which then also runs without dropout), and may have `pooling` (one of
    POOLERS, or a dict of them by task), `pair_encoding` ("cross": a pair is one sequence, as in Devlin
    et al. 2019; "bi": two, compared afterwards), `pair_score` (of "bi": "concat" scores (u, v, |u - v|),
    "cosine" the angle) and `max_length`.
    """

    def __init__(self, config):
        super().__init__()
        self.config = read_config(config, pooling="cls", pair_encoding="cross", pair_score="concat", max_length=512)
        self.bert = load_encoder(self.config)
        self.max_length = min(self.config.max_length, self.bert.config.max_position_embeddings)
        pooling = self.config.pooling
        self.pooling = pooling if isinstance(pooling, dict) else dict.fromkeys(TASKS, pooling)

        C, dropout = self.bert.config.hidden_size, self.config.hidden_dropout_prob
        self.sentiment_head = head(C, C, N_SENTIMENT_CLASSES, dropout)
        if self.config.pair_encoding == "bi" and self.config.pair_score == "cosine":
            # Start where the labels are: similarities span 0 to 5, duplicates lie above a cosine of one half.
            self.paraphrase_head, self.similarity_head = CosineHead(10.0, -5.0), CosineHead(5.0, 0.0)
        else:
            pair_features = C if self.config.pair_encoding == "cross" else 3 * C
            self.paraphrase_head = head(pair_features, C, 1, dropout)
            self.similarity_head = head(pair_features, C, 1, dropout)
            nn.init.constant_(self.similarity_head[-1].bias, 2.5)  # the middle of the labels, 0 to 5

    def train(self, mode=True):
        """Switch to training mode, all but a frozen encoder."""
        super().train(mode)
        self.bert.train(mode and self.config.option != "pretrain")
        return self

    def forward(self, input_ids, attention_mask, token_type_ids=None, task="sst"):
        """Return the pooled encoding of input_ids (B, T) that `task` uses, in fp32: (B, C)."""
        output = self.bert(input_ids, attention_mask, token_type_ids)
        return POOLERS[self.pooling[task]](output, attention_mask).float()

    def score(self, task_head, *features):
        """Return the head's logits of pooled features, computed in fp32 whatever the encoder ran in."""
        with torch.autocast(features[0].device.type, enabled=False):
            return task_head(*features)

    def predict_sentiment(self, input_ids, attention_mask):
        """Return the logits (B, 5) of the sentiment classes of input_ids (B, T)."""
        return self.score(self.sentiment_head, self(input_ids, attention_mask, task="sst"))

    def predict_paraphrase(self, input_ids_1, attention_mask_1, input_ids_2, attention_mask_2):
        """Return one logit a pair, (B,), above 0 for a paraphrase; the texts are (B, T1) and (B, T2)."""
        return self.predict_pair("para", self.paraphrase_head,
                                 input_ids_1, attention_mask_1, input_ids_2, attention_mask_2)

    def predict_similarity(self, input_ids_1, attention_mask_1, input_ids_2, attention_mask_2):
        """Return one similarity a pair, (B,), on the labels' scale of 0 to 5 but not bound to it."""
        return self.predict_pair("sts", self.similarity_head,
                                 input_ids_1, attention_mask_1, input_ids_2, attention_mask_2)

    def predict_pair(self, task, task_head, input_ids_1, attention_mask_1, input_ids_2, attention_mask_2):
        """Return the score of each pair, (B,), by the encoding that the configuration names."""
        if self.config.pair_encoding == "cross":
            packed = pack_pairs(input_ids_1, attention_mask_1, input_ids_2, attention_mask_2, self.max_length)
            features = [self(*packed, task=task)]  # (B, C)
        else:
            u, v = self.encode_apart(input_ids_1, attention_mask_1, input_ids_2, attention_mask_2, task)
            cosine = self.config.pair_score == "cosine"
            features = [u, v] if cosine else [torch.cat([u, v, (u - v).abs()], dim=-1)]  # (B, 3C)
        return self.score(task_head, *features).squeeze(-1)  # (B,)

    def encode_apart(self, input_ids_1, attention_mask_1, input_ids_2, attention_mask_2, task):
        """Return the encodings u and v, (B, C) each, of the first and the second texts.

        The rows of a batch agree in the length of the pair, not of each text. So all 2B texts are
        encoded in chunks of about equal length: of Quora's two columns a third would be padding.
        """
        T = max(input_ids_1.shape[1], input_ids_2.shape[1])
        input_ids, attention_mask = (
            torch.cat([nn.functional.pad(side, (0, T - side.shape[1])) for side in sides])  # (2B, T)
            for sides in ((input_ids_1, input_ids_2), (attention_mask_1, attention_mask_2)))
        lengths, order = attention_mask.sum(1).sort()
        widest = [max(1, int(chunk[-1])) for chunk in lengths.cpu().chunk(8)]  # the one wait for the device
        encoded = [self(input_ids[rows, :width], attention_mask[rows, :width], task=task)
                   for rows, width in zip(order.chunk(8), widest, strict=True)]
        return torch.cat(encoded)[order.argsort()].chunk(2)

    def logits(self, batch):
        """Return the logits of a batch on the model's device, for the task batch["task"].

        A pair comes as the contract's two texts, or already packed into one sequence with its token types.
        """
        if batch["task"] == "sst":
            return self.predict_sentiment(batch["token_ids"], batch["attention_mask"])
        if "token_type_ids" in batch:
            task_head = self.paraphrase_head if batch["task"] == "para" else self.similarity_head
            packed = (batch["token_ids"], batch["attention_mask"], batch["token_type_ids"])
            return self.score(task_head, self(*packed, task=batch["task"])).squeeze(-1)  # (B,)
        predict = self.predict_paraphrase if batch["task"] == "para" else self.predict_similarity
        return predict(batch["token_ids_1"], batch["attention_mask_1"], batch["token_ids_2"], batch["attention_mask_2"])


def low_shot(rows, count, seed):
    """Return `count` of the rows, the same for the same seed; all of them when count is None."""
    if count is None or count >= len(rows):
        return rows
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count]
    return [rows[i] for i in sorted(chosen.tolist())]


def training_loaders(args):
    """Return {task: loader} of the training files over the tasks in args.tasks."""
    files = [getattr(args, f"{task}_train") if task in args.tasks else None for task in TASKS]
    sst, _, para, sts = load_multitask_data(*files, split="train", skip_bad_rows=args.skip_bad_rows)
    sst, para, sts = (low_shot(rows, args.train_rows, args.seed) for rows in (sst, para, sts))
    data = {"sst": SentenceClassificationDataset(sst, args), "para": SentencePairDataset(para, args),
            "sts": SentencePairDataset(sts, args, isRegression=True)}
    return {task: bucket_loader(data[task], args.task_batch_size.get(task, args.batch_size), MAX_TOKENS_TRAIN,
                                shuffle=True, seed=args.seed + i, pair_encoding=args.pair_encoding,
                                pin_memory=args.use_gpu)
            for i, task in enumerate(TASKS) if task in args.tasks}


def scores_text(scores):
    """Return {task: metric} as one line, with the overall score where all three tasks are there."""
    text = ", ".join(f"{task} {score:.3f}" for task, score in scores.items())
    return f"{text}, overall {overall_score(scores):.3f}" if len(scores) == len(TASKS) else text


def train_multitask(args):
    """Train on the tasks in args.tasks, save the weights with the best dev score to args.filepath; return that score.

    A sample of the training rows is scored too: its distance from dev shows how far a task is overfitted.
    """
    args = complete(args)
    seed_everything(args.seed)
    device = get_device(args.use_gpu)
    config = SimpleNamespace(
        hidden_dropout_prob=args.hidden_dropout_prob, encoder_dropout_prob=args.encoder_dropout_prob,
        num_labels=N_SENTIMENT_CLASSES, data_dir=".", option=args.option, pretrained=args.pretrained,
        pooling=args.pooling, pair_encoding=args.pair_encoding, pair_score=args.pair_score, max_length=args.max_length)
    model = MultitaskBERT(config).to(device)
    config.hidden_size = model.bert.config.hidden_size
    require_room(model, args)
    check_tokenizer(args, model)
    note_length(args, model)

    loaders = training_loaders(args)
    for task, loader in loaders.items():
        print(f"{task}: {len(loader.dataset)} rows, {len(loader)} batches, "
              f"{loader.batch_sampler.padding_share():.1%} padding")
    dev_loaders, _ = multitask_loaders(args, "dev")
    seen = {task: loader.sample(SEEN_ROWS, args.seed) for task, loader in loaders.items()}
    optimizer = make_optimizer(model, args)
    losses = {task: TASK_LOSSES[LOSSES[task]] for task in loaders}

    def scores_on(split_loaders):
        results = model_eval_multitask(*(split_loaders.get(task) for task in TASKS), model, device)
        return {task: results[3 * i] for i, task in enumerate(TASKS) if task in split_loaders}

    def evaluate():
        dev = scores_on(dev_loaders)
        return overall_score(dev), scores_text(dev), {"dev": dev, "train": scores_on(seen)}

    return fit(model, SCHEDULES["proportional"](loaders, args.seed), losses, optimizer, evaluate,
               lambda filepath, **more: save_model(model, optimizer, args, config, filepath, **more), device, args)


def test_multitask(args):
    """Load args.filepath, score the dev sets, write the prediction files; return {task: dev metric}."""
    args = complete(args)
    device = get_device(args.use_gpu)
    saved = load_checkpoint(args.filepath)
    args = with_stored(args, saved, ("tasks", "pretrained", "max_length", "truncation"))
    with restoring(args.filepath):
        model = MultitaskBERT(saved["model_config"])
        model.load_state_dict(saved["model"])
    check_tokenizer(args, model.to(device))
    print(f"load model from {args.filepath}")

    with autocast(device, args.precision):
        scores = evaluation.test_model_multitask(args, model, device)
    print("\ntask      dev score")
    for task, score in scores.items():
        print(f"{task:9s} {score:9.3f}")
    if len(scores) == len(TASKS):
        print(f"{'overall':9s} {overall_score(scores):9.3f}")
    return scores


test_model = test_multitask  # its name in the 2023 edition


def get_parser():
    """Return the script's argument parser; its defaults are for bert-base-uncased, and not measured here.

    They are the row "LeakyReLU, batch 32, dropout .1, lr 7e-6" of Peng, Yuan and Wang (2024), dev overall
    .782, with pairs cross-encoded as by Le and Lin (2024), .790.
    """
    parser = ArgumentParser(description=__doc__.splitlines()[0], epilog="@FILE reads flags from FILE; see recipes/")
    add_arguments(parser, LEARNING_RATES)
    parser.set_defaults(option="finetune", batch_size=32, hidden_dropout_prob=0.1)
    for task in TASKS:
        for split in ("train", "dev", "test"):
            parser.add_argument(f"--{task}_{split}", type=path_name, metavar="PATH",
                                help=f"the {task} {split} file")
        for split in ("dev", "test"):
            parser.add_argument(f"--{task}_{split}_out", type=path_name, metavar="PATH",
                                help=f"where {task} {split} predictions go")
    parser.add_argument("--data_dir", type=path_name, default="data",
                        help="folder of the nine data files not named by a flag")
    parser.add_argument("--predictions_dir", type=path_name, default="predictions",
                        help="likewise of the six prediction files")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="what to train and predict")
    parser.add_argument("--train_rows", type=number(int, 1), metavar="N", help="train on N random rows of each task")
    parser.add_argument("--task_batch_size", nargs="+", action="extend", metavar="TASK=N",
                        help="rows of a step for one task, in place of --batch_size")
    parser.add_argument("--pair_encoding", choices=("cross", "bi"), default="cross",
                        help="cross: a pair is one sequence; bi: two, compared afterwards")
    parser.add_argument("--pair_score", choices=("concat", "cosine"), default="concat",
                        help="how bi compares: a head over (u, v, |u - v|), or the cosine")
    parser.add_argument("--pooling", nargs="+", action="extend", metavar="[TASK=]NAME",
                        help=f"{', '.join(POOLERS)}: the sentence's encoding, for all tasks or for one (default: cls)")
    parser.add_argument("--demo", action="store_true",
                        help="the packaged MiniLM on data/sample, by recipes/minilm.args unless another is named")
    return parser


def parse_pooling(specs):
    """Return {task: name of a pooler} from specs such as ["mean", "sst=pooler"]; later ones win."""
    pooling = dict.fromkeys(TASKS, "cls")
    for spec in specs or []:
        task, _, name = spec.rpartition("=")
        if name not in POOLERS or task not in ("", *TASKS):
            raise UserError(f"--pooling {spec}: give [TASK=]NAME with TASK one of {', '.join(TASKS)} "
                            f"and NAME one of {', '.join(POOLERS)}")
        pooling.update(dict.fromkeys([task] if task else TASKS, name))
    return pooling


def parse_batch_sizes(specs):
    """Return {task: rows} from specs such as ["para=64"]."""
    sizes = {}
    for spec in specs or []:
        task, _, rows = spec.partition("=")
        if task not in TASKS or not re.fullmatch("[0-9]{1,6}", rows) or int(rows) < 1:
            raise UserError(f"--task_batch_size {spec}: give TASK=N with TASK one of {', '.join(TASKS)} and N from 1 "
                            "to 999999")
        sizes[task] = int(rows)
    return sizes


def complete(args):
    """Return `args` with every argument of ours that it lacks: defaults, file names, pooling by task."""
    args = with_defaults(args, get_parser())
    if not isinstance(args.pooling, dict):
        args.pooling = parse_pooling(args.pooling)
    if not isinstance(args.task_batch_size, dict):
        args.task_batch_size = parse_batch_sizes(args.task_batch_size)
    args.tasks = [task for task in TASKS if task in args.tasks]
    for task in TASKS:
        for split, file_split in (("train", "train"), ("dev", "dev"), ("test", "test-student")):
            if getattr(args, f"{task}_{split}") is None:
                setattr(args, f"{task}_{split}", os.path.join(args.data_dir, FILES[task].format(file_split)))
        for split in ("dev", "test"):
            if getattr(args, f"{task}_{split}_out") is None:
                setattr(args, f"{task}_{split}_out",
                        os.path.join(args.predictions_dir, f"{task}-{split}-output.csv"))
    return with_run_dir(args, f"multitask-{args.option}")


def get_args(argv=None):
    """Parse the command line; --demo stands for flags of its own, which explicit ones override."""
    argv = sys.argv[1:] if argv is None else argv
    if get_parser().parse_args(argv).demo:
        # A few hundred rows need more and smaller steps than the recipe's data.
        recipe = ["@" + os.path.join(ROOT, "recipes", "minilm.args"), "--epochs", "4", "--batch_size", "16"]
        if any(arg.startswith("@") for arg in argv):
            recipe = []
        argv = [*recipe, "--pretrained", "minilm", "--data_dir", os.path.join(ROOT, "data/sample"),
                "--predictions_dir", os.path.join("predictions", "demo"),
                "--run_dir", os.path.join("runs", "demo"), *argv]
    return parse(get_parser(), complete, argv, contradictions)


def contradictions(args):
    """Return what cannot be meant together in this script's flags, a line each."""
    given, problems = args.given, []
    if given.get("pair_score") == "cosine" and args.pair_encoding == "cross":
        problems.append("--pair_score cosine compares two encodings, and --pair_encoding cross makes one of a pair: "
                        "add --pair_encoding bi, or leave it out")
    if len(given.get("tasks", ())) > len(args.tasks):
        problems.append(f"--tasks {' '.join(given['tasks'])}: name each task once")
    for task in TASKS:
        if task not in args.tasks:
            idle = [f"--{name}" for name in given if name.startswith(f"{task}_")]
            idle += [f"--{name} {spec}" for name in ("pooling", "task_batch_size") for spec in given.get(name, ())
                     if spec.startswith(f"{task}=")]
            problems += [f"{flag} is for {task}, which is not among --tasks {' '.join(args.tasks)}: leave one of the "
                         "two out" for flag in idle]
    return problems


def main():
    """Train, then predict with the best checkpoint."""
    args = get_args()
    distributed.start(args.use_gpu)
    note_weights(args)
    inputs = [getattr(args, f"{task}_{split}") for task in args.tasks for split in ("train", "dev", "test")]
    require_files(inputs)
    require_outputs(args, inputs, [getattr(args, f"{task}_{split}_out") for task in args.tasks
                                   for split in ("dev", "test")])
    if args.use_gpu:
        get_device(True)  # raises without one
    for task, form in zip(TASKS, FORMATS, strict=True):  # training reads the other files before its first step
        if task in args.tasks:
            read_sound(getattr(args, f"{task}_test"), form, labelled=False, skip_bad_rows=args.skip_bad_rows)
    train_multitask(args)
    test_multitask(args)
    distributed.stop()


if __name__ == "__main__":
    run_script(main)
