"""A model's configuration: how it is completed and checked, and the encoder that it describes."""

from numbers import Real
from types import SimpleNamespace

import torch.nn as nn

from base_bert import numbers_held
from bert import BertModel
from config import BertConfig, check_choice, check_number
from engine.batching import TRUNCATIONS
from extensions import ENCODER_FLAGS, HEADS, PAIR_FEATURES, POOLING
from extensions.encoder import is_frozen, loaded_parameters
from extensions.specs import from_spec
from files.errors import UserError
from tasks import COURSE_TASKS, TASKS, with_course_tasks

# The spring 2024 edition's --fine-tune-mode and the --option it means.
FINE_TUNE_MODES = {"last-linear-layer": "pretrain", "full-model": "finetune"}
PAIR_ENCODINGS, PAIR_SCORES = ("cross", "bi"), (*PAIR_FEATURES, "cosine")
# What the settings in a checkpoint may be, where they are there: words, and (least, most, kind) of numbers.
STORED_CHOICES = {"option": ("pretrain", "finetune"), "fine_tune_mode": tuple(FINE_TUNE_MODES),
                  "pair_encoding": PAIR_ENCODINGS, "pair_score": PAIR_SCORES,
                  "pair_order": ("given", "both"),
                  "truncation": TRUNCATIONS}
STORED_SPECS = {"pooling": POOLING, "heads": HEADS, **ENCODER_FLAGS}
STORED_NUMBERS = {"hidden_dropout_prob": (0, 1, Real), "encoder_dropout_prob": (0, 1, Real),
                  "num_labels": (1, 10_000), "max_length": (1, 10**9)}


def read_config(config, **defaults):
    """Return a model's configuration, given as a namespace or as a loaded dict, completed by `defaults`."""
    given = config if isinstance(config, dict) else vars(config)
    if given.get("fine_tune_mode"):
        given = {"option": FINE_TUNE_MODES[given["fine_tune_mode"]], **given}
    return SimpleNamespace(**{"option": "finetune", "pretrained": "bert-base-uncased", "encoder_dropout_prob": 0.1,
                              **{part: [] for part in ENCODER_FLAGS}, **defaults, **given})


def model_config(args, names, **more):
    """Return the configuration that a checkpoint keeps of a model: the arguments `names`, and `more`."""
    return SimpleNamespace(**{name: getattr(args, name) for name in names}, data_dir=".", **more)


class EncoderModel(nn.Module):
    """What the models of both scripts share: an encoder, `bert`, and a way from a task's batch to its logits.

    A subclass has `encode(task, batch)` and `score(task, encodings)`. With `config.option` "pretrain" the frozen
    encoder runs without dropout.
    """

    def train(self, mode=True):
        """Switch to training mode, all but a frozen encoder in which nothing has been made trainable."""
        super().train(mode)
        self.bert.train(mode and not (self.config.option == "pretrain" and is_frozen(self.bert)))
        return self

    def logits(self, task, batch):
        """Return the logits (B, K) or (B,) of a batch on the model's device."""
        return self.score(task, self.encode(task, batch))


def load_encoder(config):
    """Return the BERT of a model configuration, frozen when `config.option` is "pretrain", with its parts replaced.

    The weights are `config.pretrained`'s, unless `config.bert_config` (stored in every checkpoint) gives
    the architecture: then the weights are random and are to be loaded from the checkpoint.
    """
    stored = getattr(config, "bert_config", None)
    if stored is not None:
        bert = BertModel(BertConfig.from_dict(stored))
    else:
        bert = BertModel.from_pretrained(config.pretrained, hidden_dropout_prob=config.encoder_dropout_prob,
                                         attention_probs_dropout_prob=config.encoder_dropout_prob)
    bert.requires_grad_(config.option != "pretrain")
    loaded_parameters(bert)
    bert.tasks = with_course_tasks(getattr(config, "tasks", COURSE_TASKS))  # those that some techniques have parts for
    for part, table in ENCODER_FLAGS.items():
        specs = getattr(config, part)
        for spec in specs if isinstance(specs, list) else [specs]:
            try:
                technique = from_spec(spec, table)
            except ValueError as error:
                raise UserError(f"--{part} {error}") from error
            try:
                technique(bert)
            except ValueError as error:
                raise UserError(f"--{part} {spec}: {error}") from error
    return bert


def check_spec(source, name, spec):
    """Raise UserError unless a stored value names a technique of that kind."""
    try:
        from_spec(str(spec), STORED_SPECS[name])
    except ValueError as error:
        raise UserError(f"{source}: {name} is {error}") from error


def check_stored(filepath, saved):
    """Raise UserError unless a checkpoint's settings are valid and its weights as many as those of its BERT."""
    choices = {**STORED_CHOICES, "tasks": tuple(TASKS)}
    for part in ("model_config", "args"):
        source = f"{filepath}: {part}"
        for name, value in saved[part].items():
            by_task = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
            if name in choices and value is not None:
                for choice in by_task:
                    check_choice(source, name, choice, choices[name])
            elif name in STORED_SPECS and value is not None:
                for spec in by_task:
                    check_spec(source, name, spec)
            elif name in STORED_NUMBERS and value is not None and not isinstance(value, dict):
                check_number(source, name, value, *STORED_NUMBERS[name])
            elif name == "pretrained" and not isinstance(value, str):
                raise UserError(f"{source}: pretrained is {type(value).__name__} and must be the name of a model")
    stored = saved["model_config"].get("bert_config")
    if stored is not None:
        source = f"{filepath}: bert_config"
        if not isinstance(stored, dict):
            raise UserError(f"{source} is {type(stored).__name__} and must be a dict")
        BertConfig.check_names(source, stored)
        config = BertConfig.from_dict(stored)
        config.validate(source)
        held = numbers_held(saved["model"].values(), filepath)
        replaced = any(saved["model_config"].get(part) not in (None, [], next(iter(table)))
                       for part, table in ENCODER_FLAGS.items())  # by less than there was, it may be
        if config.num_parameters() > held * (16 if replaced else 1):  # before anybody allocates as much
            raise UserError(f"{source} is of {config.num_parameters():,} weights, and the file holds {held:,}; train "
                            "again")
