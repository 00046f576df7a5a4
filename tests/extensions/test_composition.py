"""Every pair of techniques takes three steps together, or is refused in one line."""

import contextlib
import io
import math
import re

import pytest
import torch

import datasets
from engine.loop import optimizer_settings, step_settings
from engine.losses import total_loss
from engine.step import make_optimizer, make_step, set_learning_rates
from extensions import (
    ENCODER_FLAGS,
    GRADIENTS,
    HEADS,
    PARAMETER_GROUPS,
    PENALTIES,
    POOLING,
    SCHEDULES,
    TASK_LOSSES,
    TASK_WEIGHTS,
)
from extensions.specs import build
from files.errors import UserError
from multitask_classifier import build_model, get_args, training_loaders
from tests.helpers.fixtures_tiny import tiny_bert_dir, write_course_files

JOINT = "--schedule round-robin"
TECHNIQUES = (
    "--schedule round-robin:end=longest",
    "--schedule round-robin:order=para+sts+sst", "--schedule sqrt", "--schedule temperature:alpha=0.3",
    "--schedule annealed", "--schedule staged:first=para", "--schedule staged:first=none,delay=sst", "--schedule even",
    "--schedule round-robin:end=balanced,batch_size=5", "--dropout attention=0.2",
    f"{JOINT} --gradient pcgrad", f"{JOINT} --gradient gradvac", f"{JOINT} --gradient cagrad",
    f"{JOINT} --task_weights uncertainty", "--task_weights loss-scale", "--task_weights dwa",
    "--task_weights fixed:para=2",
    "--loss sst=ordinal", "--loss sst=one-versus-rest", "--loss sst=focal", "--loss sst=ce:smoothing=0.1",
    "--loss sst=ce sst=simcse:weight=0.1", "--loss para=bce para=mnrl:weight=0.1", "--loss para=simcse-supervised",
    "--loss sts=cosine", "--loss sts=mse sts=cosine-embedding", "--loss sts=pearson",
    "--penalty smart", "--penalty bregman", "--penalty rdrop", "--penalty fgm", "--penalty l2sp",
    "--norm rmsnorm", "--ffn gelu:width=16", "--ffn geglu", "--ffn swiglu", "--attention mha:heads=1",
    "--attention mqa", "--attention gqa:groups=1", "--attention_backend unpadded", "--positions relative",
    "--positions rotary", "--positions alibi",
    "--adapt lora", "--adapt dora", "--adapt adapters", "--adapt prefix", "--adapt prompt", "--adapt ia3",
    "--adapt bitfit", "--adapt diff", "--adapt last-linear", "--adapt freeze:layers=first-1",
    "--adapt gradual-unfreezing", "--adapt extra-layers", "--adapt layer-drop", "--adapt remove-layers:keep=first-1",
    "--adapt pals:size=8,heads=2", "--adapt task-layers", "--adapt extra-attention", "--adapt mixout",
    "--pooling mean", "--pooling max", "--pooling attention", "--pooling layers", "--pooling pooler",
    "--heads mlp:hidden=4,activation=rrelu", "--heads para=relational sts=relational",
    "--pair_encoding cross", "--pair_encoding bi --pair_score product", "--pair_encoding bi --pair_score cosine",
    "--pair_encoding sts=bi", "--pair_order both", "--accumulate 2", "--option pretrain", "--param_groups layerwise",
    "--param_groups flat:head=10", "--param_groups per-layer:rates=1e-5+2e-5+3e-5",
)
# Adaptations of the encoder that do not go together in this order, by what the message says.
CLASHES = {
    "already: leave one": "lora>dora lora>ia3 dora>lora dora>ia3 ia3>lora ia3>dora",
    "freezes nothing": "lora>freeze dora>freeze prefix>freeze prompt>freeze ia3>freeze diff>freeze last-linear>freeze",
    "name this one first": "diff>lora diff>dora diff>ia3 mixout>lora mixout>dora mixout>ia3",
    "tunes biases or norms": "adapters>diff bitfit>diff",
    "diff tunes the": "diff>adapters diff>bitfit",
    "nothing is left for it": "mixout>diff",
    "nothing to unfreeze": "last-linear>gradual-unfreezing",
    "plain layer": "extra-layers>pals layer-drop>pals task-layers>pals extra-attention>pals extra-layers>task-layers "
                   "extra-attention>task-layers layer-drop>task-layers pals>task-layers",
}
BI = ("mnrl", "simcse-supervised", "cosine")
TABLES = {"schedule": SCHEDULES, "gradient": GRADIENTS, "task_weights": TASK_WEIGHTS, "loss": TASK_LOSSES,
          "penalty": PENALTIES, "pooling": POOLING, "heads": HEADS, "param_groups": PARAMETER_GROUPS, **ENCODER_FLAGS}


def refused(*techniques):
    """Return what of the message says why such techniques, in this order, are no run; None where they are."""
    flags = " ".join(techniques)
    schedules = [part.split()[0] for part in flags.split("--schedule ")[1:]]
    single = schedules and not (schedules[-1] == "even" or schedules[-1].startswith("round-robin")
                                and "order" not in schedules[-1])
    if "--gradient" in flags and single:
        return "combines several tasks' gradients"
    pairs = [loss for loss in flags.split() if loss.startswith(("para=", "sts=")) and any(name in loss for name in BI)]
    if "--pair_encoding cross" in flags and "--pair_encoding bi" not in flags[flags.rfind("--pair_encoding cross"):]:
        if "--pair_score" in flags:
            return "compares two encodings"
        if pairs:
            return "needs bi"
    frozen = "last-linear" in flags or "--option pretrain" in flags and "--adapt" not in flags
    idle = re.search(r"=(simcse|mnrl|cosine)", flags) and not re.search("pooling (attention|layers)", flags)
    if frozen and any(f"--loss {loss}" in flags for loss in ("para=simcse-supervised", "sts=cosine")) or (
            idle and "--option pretrain" in flags and "--adapt" not in flags):
        return "trains the encoder alone"
    if "unpadded" in flags and ("--adapt pals" in flags or "--pooling layers" in flags):
        return "of its own in place of all layers" if "pals" in flags else "reads padded hidden states"
    adapted = ">".join(re.findall(r"--adapt ([\w-]+)", flags))
    for reason, orders in CLASHES.items():
        if adapted in orders.split():
            return reason
    if "--option pretrain" in flags and adapted in ("gradual-unfreezing", "freeze"):
        return "nothing to unfreeze" if adapted == "gradual-unfreezing" else "freezes nothing"
    if "per-layer" in flags and "extra-" in flags:
        return "give 4 rates"
    if "sst=ordinal" in flags and "sst=one-versus-rest" in flags:
        return "log-probabilities"
    if "relational" in flags and (pairs or "--pair_score cosine" in flags or "sts=bi" in flags):
        return "a shared trunk needs"
    if "--loss para=simcse-supervised" in flags and "--pair_score product" in flags:
        return "trains no head"
    if "--pair_score product" in flags and "sts=cosine" in flags.split() and (
            flags.rfind("product") > flags.rfind("--pair_score cosine")):
        return "needs cosine"
    return None


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Return the flags of a run on 20 rows a file, of a BERT of two layers; the seed is of a plan with all tasks."""
    folder = tmp_path_factory.mktemp("composition")
    bert_dir = str(tiny_bert_dir(folder / "bert", hidden_size=24, num_hidden_layers=2, num_attention_heads=2))
    write_course_files(folder / "data", rows=20)
    datasets.load_tokenizer.cache_clear()
    return ["--pretrained", bert_dir, "--data_dir", str(folder / "data"), "--batch_size", "4", "--epochs", "2",
            "--precision", "fp32", "--lr", "1e-3", "--seed", "1", "--run_dir", str(folder / "run")]


def three_steps(flags):
    """Return the losses of three steps with these flags; raises UserError where the script would."""
    with contextlib.redirect_stdout(io.StringIO()):
        args = get_args(flags)
        torch.manual_seed(0)
        model, _ = build_model(args)
        schedule = build(args.schedule, SCHEDULES, training_loaders(args), args.seed, args.epochs)
        optimizer = make_optimizer(model, **optimizer_settings(args))
        losses = {task: total_loss(args.loss[task]) for task in schedule.loaders}
        device = torch.device("cpu")
        step = make_step(model.train(), losses, optimizer, device, joint=schedule.joint, **step_settings(args))
        steps, found = schedule(0), []
        for i in range(3):
            set_learning_rates(optimizer, 1.0)
            found += step([steps.part(i, k, args.accumulate) for k in range(args.accumulate)]).items()
        assert int(step.skipped) == 0
    assert "staged" in args.schedule or {task for task, _ in found} == set(losses), "a task that never trains"
    return [loss.item() for _, loss in found]


def test_every_technique_is_among_them():
    plain = {("loss", "bce"), ("loss", "mse"), ("heads", "mlp"), ("schedule", "proportional"), ("gradient", "sum"),
             ("task_weights", "fixed"), ("pooling", "cls"), ("param_groups", "no-decay"), ("norm", "layernorm"),
             ("attention", "mha"), ("positions", "absolute")}  # what every run has that names no other
    for flag, table in TABLES.items():
        named = {word.rpartition("=")[2] if flag in ("loss", "heads") and ":" not in word else word
                 for technique in TECHNIQUES if f"--{flag} " in technique for word in technique.split()}
        for name in table:
            assert (flag, name) in plain or any(name in word for word in named), (flag, name)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_each_alone_in_bf16(technique, base):
    assert all(map(math.isfinite, three_steps([*base, "--precision", "bf16", *technique.split()])))


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_each_with_every_other(technique, base):
    later = TECHNIQUES[TECHNIQUES.index(technique) + 1:]
    pairs = [(technique, other) for other in later]
    if "--adapt" in technique:  # there the order counts
        pairs += [(other, technique) for other in later if "--adapt" in other]
    for one, other in pairs:
        reason = refused(one, other)
        try:
            losses = three_steps([*base, *one.split(), *other.split()])
        except UserError as error:
            assert reason and reason in str(error) and "\n" not in str(error), (one, other, error)
        else:
            assert reason is None, (one, other)
            assert all(map(math.isfinite, losses)), (one, other)
