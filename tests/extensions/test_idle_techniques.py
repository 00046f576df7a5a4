"""What cannot be meant, or would do nothing, with techniques of several tasks: one line that says so."""

import sys

import pytest

import multitask_classifier
from extensions import ADAPT
from extensions.specs import from_spec, require_effect
from files.errors import UserError
from multitask_classifier import get_args

REFUSED = [
    ("--heads sts=mlp:hidden=3 --loss sts=cosine", "--heads sts=mlp:hidden=3: the cosine takes the place of that head"),
    ("--pair_encoding bi --pair_score cosine --heads para=mlp:hidden=3", "--heads para=mlp:hidden=3: the cosine"),
    ("--tasks sst --schedule round-robin --gradient pcgrad", "--gradient pcgrad combines several tasks' gradients"),
    ("--gradient gradvac --schedule proportional",
     "^--gradient gradvac combines .* and --schedule proportional has one task a step: leave --schedule out, or name"),
    ("--gradient pcgrad --schedule round-robin:end=longest,order=para+sts+sst",
     "and --schedule round-robin:.*,order=para.sts.sst has one task a step: .* name round-robin without order="),
    ("--tasks sst --pair_encoding bi --pair_score cosine", "--pair_encoding bi is for pairs, .* --pair_score cosine"),
    ("--pair_encoding sts=bi --pair_score para=product", "--pair_score para=product .* add --pair_encoding para=bi"),
    ("--tasks sst sts --pair_encoding para=bi", "--pair_encoding para=bi is for para, which is not among"),
    ("--pair_encoding sst=bi", "--pair_encoding sst=bi: give .TASK=.SPEC with TASK one of para, sts"),
    ("--tasks sst para --pair_score sts=cosine", "^--pair_score sts=cosine is for sts, which is not among"),
    ("--tasks sst --pair_encoding para=bi", "^--pair_encoding para=bi is for para, which is not among"),
    ("--pair_encoding =bi", "--pair_encoding =bi: give .TASK=.SPEC with TASK one of para, sts"),
    ("--pair_encoding both", "--pair_encoding both: give cross or bi"),
    ("--pair_encoding bi sts=cross --loss sts=cosine", "--pair_encoding sts=cross: --loss sts=cosine needs bi"),
    ("--pair_score product --loss sts=cosine", "--pair_score product: --loss sts=cosine needs cosine"),
    ("--heads sst=mlp:hidden=9", "hidden must be from 0 to 4"),
    ("--heads mlp:hidden=0,activation=tanh", "^--heads mlp:hidden=0,.*: activation does nothing without hidden"),
    ("--heads para=relational:hidden=0 sts=relational:hidden=0", "hidden must be from 1 to 4"),
    ("--loss sst=one-versus-rest sst=ordinal", "sst=one-versus-rest: not with sst=ordinal, whose outputs are log"),
    ("--loss sst=ordinal sst=one-versus-rest", "sst=one-versus-rest: not with sst=ordinal, whose outputs are log"),
    ("--loss sst=ce:smoothing=2", "smoothing must be from 0 to 1"),
    ("--loss sst=ce sst=simcse:temperature=0", "temperature must be at least 0.001"),
    ("--tasks sst --task_weights uncertainty", "--task_weights uncertainty weighs several tasks, and --tasks names"),
    ("--option pretrain --loss sst=ce sst=simcse", "sst=simcse trains the encoder alone, .* freezes: leave it out"),
    ("--option pretrain --loss para=simcse-supervised", "freezes: add a loss that trains a head, such as para=bce"),
    ("--heads sst=mlp:activation=foo", "^--heads mlp:activation=foo: activation must be one of relu, leaky-relu"),
    ("--loss sts=ce", "--loss sts=ce: ce is a loss for sst and cfimdb"),
    ("--loss sst=crossentropy", "^--loss crossentropy: no 'crossentropy'; did you mean ce"),
    ("--loss sst=ce:label_smoothing=0.1", "no option 'label_smoothing'; did you mean smoothing"),
    ("--tasks sst sts --task_weights fixed:para=2", "^--task_weights fixed:para=2: para is not among --tasks sst sts"),
    ("--task_weights fixed:sst=0,para=0,sts=0", "sts=0: with a weight of 0 for all tasks nothing is trained"),
    ("--schedule round-robin:order=para+sts", "^--schedule round-robin:order=para.sts: order=para.sts: name each of"),
    ("--schedule staged:first=para --tasks sst sts", "first=para: para is not among the tasks sst, sts"),
    ("--schedule staged:first_epochs=3 --epochs 3", "sst, sts would never be trained in 3 epochs: give more --epochs"),
    ("--schedule round-robin:end=balanced --task_batch_size para=4", "--task_batch_size: --schedule round-robin:end"),
    ("--schedule even --task_batch_size para=4", "--task_batch_size: --schedule even sets the")]
REFUSED_BY_ARGPARSE = [
    ("--penalty bregman:beta=2", "beta must be from 0 to 1"), ("--gradient gradvac:beta=5", "beta must be from 0 to 1"),
    ("--schedule round-robin:batch_size=32", "batch_size does nothing without end=balanced"),
    ("--schedule staged:first=none,delay=sst,first_epochs=3", "first_epochs does nothing without first"),
    ("--schedule staged:delay_epochs=2", "delay_epochs does nothing without delay"),
    ("--adapt prefix:hidden=64", "hidden does nothing without reparameterize=true"),
    ("--positions relative:by=clipped,buckets=8", "buckets does nothing without by=t5"),
    ("--schedule temperature:alpha=2", "alpha must be from 0 to 1"),
    ("--adapt pals:heads=0", "heads must be at least 1"), ("--adapt extra-attention:layers=0", "layers must be at"),
    ("--adapt lora:rank=0", "rank must be at least 1"), ("--adapt dora:rank=0", "rank must be at least 1"),
    ("--adapt prefix:length=0", "length must be at least 1"), ("--adapt prompt:length=0", "length must be at least 1"),
    ("--adapt prefix:reparameterize=true,hidden=0", "hidden must be at least 1"),
    ("--adapt gradual-unfreezing:per_epoch=0", "per_epoch must be at least 1"),
    ("--adapt extra-layers:n=0", "n must be at least 1"), ("--positions rotary:base=0.5", "base must be at least 1"),
    ("--positions relative:largest=0", "largest must be at least 1"), ("--dropout head=1", "1 must be below 1"),
    ("--penalty smart:norm=x", "--penalty: smart:norm=x: norm must be one of inf, l2, inf-token, l2-token"),
    ("--schedule round-robin:end=max", "end must be one of shortest, longest, balanced"),
    ("--adapt adapters:style=x", "style must be one of houlsby, pfeiffer"),
    ("--adapt lora:targets=query+x", "targets must be words of query, key, value, attention-output, ffn, joined by +"),
    ("--adapt lora:layers=top-2", "layers must be all, first-N, mid-N or last-N"),
    ("--adapt lora:layers=4", "layers must be all, first-N, mid-N or last-N, not '4'"),
    ("--positions relative:by=x", "by must be one of t5, clipped"),
    ("--positions relative:buckets=6", "buckets must be a multiple of 4"),
    ("--positions relative:largest=8", "largest more than a quarter of them"),
    ("--adapt prompt:encoder=x", "encoder must be one of none, mlp"),
    ("--adapt mixout:unit=x", "unit must be one of neuron, weight"),
    ("--adapt mixout:p=1", "p must be at least 0 and below 1"),
    ("--adapt layer-drop:p=1", "p must be at least 0 and below 1"),
    ("--adapt remove-layers:keep=alternat", "keep must be alternate, first-N, mid-N or last-N"),
    ("--adapt pals:size=7,heads=2", "size 7 must be a multiple of heads 2"),
    ("--adapt bitfit:targets=x", "targets must be all, or words of query, key"),
    ("--param_groups layerwise:decay=0", "decay must be above 0 and at most 1"),
    ("--param_groups per-layer:rates=1e-5+x", "rates must be numbers of at least 0, or lr, joined by +, not 'x'"),
    ("--task_weights dwa:T=0", "T must be above 0"),
    ("--task_weights loss-scale:beta=1", "beta must be at least 0 and below 1"),
    ("--gradient cagrad:c=1", "c must be at least 0 and below 1"),
    ("--schedule round-robin:order=para+x", "order must be none, or words of sst, para, sts"),
    ("--schedule staged:first=x", "first must be none, or words of sst, para, sts"),
    ("--adapt lora:r=8", "lora:r=8: no option 'r'; did you mean rank? lora takes rank (default 8), alpha"),
    ("--adapt lora:lora_alpha=8", "did you mean alpha?"), ("--penalty smart:eps=1", "did you mean epsilon?"),
    ("--adapt adapters:bottleneck=8", "did you mean size?"), ("--adapt prefix:prefix_length=8", "did you mean length?"),
    ("--adapt unfreeze", "no 'unfreeze'; did you mean gradual-unfreezing?"),
    ("--penalty swa", "did you mean --ema 0.995?"),
    ("--adapt lora:rnak=8", "did you mean rank?"), ("--adapt LoRA", "did you mean lora?"),
    ("--adapt lora:learning_rate=1", "did you mean --lr?"), ("--adapt lora:rank=8,rank=4", "rank is there twice"),
    ("--hidden_dropout_prob 1", "1 must be below 1"), ("--max_tokens 0", "0 must be at least 1")]
REFUSED_LATER = [
    ("--param_groups per-layer:rates=1e-5", "rates=1e-5: give 2 rates"),
    ("--adapt remove-layers:keep=first-9", "keep=first-9: choose alternate, first-N, mid-N or last-N, with N from 1")]


@pytest.fixture
def run(course_folder, monkeypatch, capsys):
    """Return a function that runs the script on tiny files and gives what it printed."""
    def run(flags):
        monkeypatch.setattr(sys, "argv", ["multitask_classifier.py", "--skip_predictions", *flags.split()])
        multitask_classifier.main()
        return capsys.readouterr().out
    return run


@pytest.mark.parametrize("flags, message", REFUSED)
def test_contradictions(flags, message):
    with pytest.raises(UserError, match=message):
        get_args(flags.split())


@pytest.mark.parametrize("flags, message", REFUSED_BY_ARGPARSE)
def test_numbers_out_of_bounds(flags, message, capsys):
    with pytest.raises(SystemExit):
        get_args(flags.split())
    assert message in capsys.readouterr().err


def test_a_checkpoint_may_say_what_does_nothing():
    """What was accepted before must still be read; on the command line it is refused (above)."""
    assert from_spec("prefix:hidden=64", ADAPT).keywords == {"hidden": 64}
    with pytest.raises(ValueError, match="hidden does nothing without reparameterize=true"):
        require_effect("prefix:hidden=64", ADAPT)
    require_effect("prefix:hidden=64,reparameterize=true", ADAPT)


@pytest.mark.parametrize("flags, message", REFUSED_LATER)
def test_before_the_first_step(flags, message, run):
    with pytest.raises(UserError, match=message):
        run(flags)


def test_notes(run):
    said = run("--accumulate 4 --loss para=mnrl sts=pearson --task_weights dwa --epochs 2 --batch_size 4")
    assert "note: para=mnrl compares the rows of one of 4 parts of a step, about 1\n" in said
    assert "note: sts=pearson compares the rows of one of 4 parts" in said
    assert "note: --task_weights dwa leaves all tasks alike for the first 2 epochs, and this run has 2" in said
    said = run("--loss sst=ce sst=simcse:weight=0.1 --epochs 3 --task_weights dwa")
    joint = "note: --task_weights dwa needs batches of several tasks in one step: using --schedule round-robin:"
    assert said.count("note: ") == said.count(joint) == 1 and "encoded apart" not in said


def test_what_an_early_end_leaves_out(run):
    said = run("--schedule staged --epochs 4 --max_steps 1 --patience 2")
    assert "note: sst, sts: no batch in the run's 1 steps\n" in said
    assert "note: --patience 2 cannot end this run early, which is scored 1 times\n" in said
    said = run("--schedule staged --epochs 4 --patience 3")
    assert "no batch" not in said and "--patience 3 cannot end this run early, which is scored 4 times" in said
    assert "note: " not in run("--schedule staged --epochs 4 --patience 2")


def test_batches_of_long_texts_have_fewer_rows_and_say_so(run):
    assert "(--max_tokens)" not in run("--epochs 1 --batch_size 2")
    said = run("--epochs 1 --batch_size 2 --max_tokens 6")
    assert "batches of 2, of fewer rows where padded to over 3 tokens (--max_tokens), " in said


def test_the_cosines_of_gradients_are_printed_and_kept_over_log_points(run):
    said = run("--schedule round-robin --gradient pcgrad --epochs 1 --log_every 1 --batch_size 2")
    [line] = [line for line in said.splitlines() if line.startswith("mean cosines of the tasks' gradients: ")]
    assert [part.split()[0] for part in line.split(": ")[1].split(", ")] == ["sst/para", "sst/sts", "para/sts"]
    assert "cosines" not in run("--schedule round-robin --epochs 1")
