"""Every flag is checked before any work: each mistake is one message, exit code 2, nothing read and nothing written."""

import pytest

import multitask_classifier
from tests.helpers.refusals import ONE_ERROR, refusal  # noqa: F401

CONTRADICTIONS = [  # given, script, flags, what the message holds
    ("--option and a --fine-tune-mode that means the other", "multitask",
     "--option pretrain --fine-tune-mode full-model", ["contradict each other", "finetune", "leave one out"]),
    ("the same in classifier.py", "classifier",
     "--option finetune --fine-tune-mode last-linear-layer", ["contradict each other", "means pretrain"]),
    ("--pair_score cosine for pairs that are one sequence", "multitask", "--pair_score cosine",
     ["a pair is one sequence", "add --pair_encoding bi"]),
    ("--compile graphs without CUDA", "multitask", "--compile graphs", ["CUDA alone", "--use_gpu"]),
    ("more --accumulate parts than rows in a step", "classifier", "--accumulate 9", ["8 rows of a step", "at most 8"]),
    ("--save_every with --filepath alone", "multitask", "--save_every 5 --filepath a.pt", ["name a --run_dir too"]),
    ("--filepath for two data sets", "classifier", "--filepath a.pt", ["--dataset sst or --dataset cfimdb"]),
    ("one task named twice", "multitask", "--tasks sst sst", ["--tasks sst sst: name each task once"]),
    ("a file of a task that is not trained", "multitask", "--tasks sts --sst_train data/ids-sst-train.csv",
     ["--sst_train is for sst", "not among --tasks sts"]),
    ("a batch size of a task that is not trained", "multitask", "--tasks sts --task_batch_size para=4",
     ["--task_batch_size para=4 is for para"]),
    ("a pooling of a task that is not trained", "multitask", "--tasks sts --pooling sst=mean",
     ["--pooling sst=mean is for sst"]),
    ("two mistakes at once", "multitask", "--tasks sts sts --accumulate 64",
     ["--tasks sts sts", "; --tasks sts sts"]),
]


@pytest.mark.parametrize("given, script, flags, words", CONTRADICTIONS, ids=[case[0] for case in CONTRADICTIONS])
def test_contradictory_flags(given, script, flags, words, refusal, record):  # noqa: F811
    said = refusal(script, flags)
    assert all(word in said for word in words), said
    record("Command line", given, ONE_ERROR, said)


VALUES = [
    ("an unknown flag near to one", "multitask", "--epoch 3", ["unknown: --epoch 3", "did you mean --epochs"]),
    ("an abbreviated flag", "classifier", "--batch 3", ["unknown: --batch 3"]),
    ("an unknown penalty near to one", "multitask", "--penalty rdorp", ["choose one of rdrop", "did you mean rdrop?"]),
    ("an unknown key of a technique", "multitask", "--penalty rdrop:wieght=1",
     ["rdrop takes weight (default 1.0)", "did you mean weight?"]),
    ("a key of a technique given twice", "multitask", "--penalty rdrop:weight=1,weight=2",
     ["rdrop:weight=1,weight=2: weight is there twice"]),
    ("a technique's number that is infinite", "multitask", "--param_groups layerwise:decay=inf", ["finite number"]),
    ("a technique's number below 0", "multitask", "--penalty rdrop:weight=-1", ["at least 0"]),
    ("a word for a technique's number", "multitask", "--penalty rdrop:weight=big",
     ["weight must be a number, not 'big'"]),
    ("an unknown choice", "multitask", "--lr_schedule step", ["invalid choice: 'step'", "linear"]),
    ("an unknown pooling", "multitask", "--pooling sum", ["--pooling sum: no 'sum'; choose one of", "mean"]),
    ("a batch of no rows", "classifier", "--batch_size 0", ["0 must be at least 1"]),
    ("a batch of a task of no rows", "multitask", "--task_batch_size sst=0", ["N from 1 to"]),
    ("a batch size in digits of another script", "multitask", "--task_batch_size sst=²", ["N from 1 to"]),
    ("a size below 0", "multitask", "--train_rows -3", ["-3: give a number of rows"]),
    ("more epochs than anybody waits for", "classifier", "--epochs 1000000000", ["must be at most 10000"]),
    ("a seed that numpy does not take", "classifier", "--seed 4294967296", ["must be at most 4294967295"]),
    ("a fraction for a count", "multitask", "--epochs 2.5", ["invalid int value: '2.5'"]),
    ("a learning rate that is no number", "multitask", "--lr nan", ["nan must be at least 0"]),
    ("an infinite learning rate", "multitask", "--lr inf", ["inf must be finite"]),
    ("a learning rate that is infinite as a float", "multitask", "--lr 1e999", ["1e999 must be finite"]),
    ("a dropout above 1", "classifier", "--hidden_dropout_prob 1.1", ["1.1 must be below 1"]),
    ("an --ema that would keep the first weights for ever", "multitask", "--ema 1.0", ["1.0 must be below 1"]),
    ("texts too short for a pair", "multitask", "--max_length 2", ["2 must be at least 5"]),
    ("an empty name of a folder", "multitask", "--run_dir=", ["an empty name; leave the flag out"]),
    ("a GPU where there is none", "classifier", "--use_gpu", ["--use_gpu", "no GPU here"]),
]


@pytest.mark.parametrize("given, script, flags, words", VALUES, ids=[case[0] for case in VALUES])
def test_values(given, script, flags, words, refusal, record, monkeypatch):  # noqa: F811
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    said = refusal(script, flags)
    assert all(word in said for word in words), said
    if "use_gpu" not in flags:  # its message names the build of torch
        record("Command line", given, ONE_ERROR, said)


FILES = [
    ("@FILE that is not there", None, ["@a.args cannot be read (No such file or directory)", "recipes/"]),
    ("@FILE that is a folder", "folder", ["cannot be read (Is a directory)"]),
    ("@FILE that is no UTF-8", b"--lr 1e-5\n\xff\xfe\n", ["a.args, line 2", "is it a file of flags"]),
    ("@FILE with a NUL byte", b"--lr 1e-5\n--pretrained a\0b\n", ["a.args, line 2: a NUL byte"]),
    ("@FILE with a quotation that does not end", b"--lr 1e-5\n\n--run_dir 'a\n", ["a.args, line 3: No closing quot"]),
    ("@FILE that names itself", b"--epochs 2\n@b.args\n", ["a.args names itself, by way of 2 files"]),
    ("@FILE with an unknown flag", b"--epochs 2\n--rl 1e-5\n", ["unknown: --rl 1e-5", "--lr"]),
]


@pytest.mark.parametrize("given, content, words", FILES, ids=[case[0] for case in FILES])
def test_files_of_flags(given, content, words, refusal, record, course_folder):  # noqa: F811
    if content == "folder":
        (course_folder / "a.args").mkdir()
    elif content is not None:
        (course_folder / "a.args").write_bytes(content)
        (course_folder / "b.args").write_bytes(b"@a.args\n")
    said = refusal("multitask", "@a.args")
    assert all(word in said for word in words), said
    record("Command line", given, ONE_ERROR, said)


def test_a_file_of_flags_as_windows_writes_it(tmp_path):
    (tmp_path / "a.args").write_bytes("\ufeff--epochs 2\r\n--run_dir 'two words'  # why\r\n".encode())
    args = multitask_classifier.get_args([f"@{tmp_path}/a.args"])
    assert (args.epochs, args.run_dir) == (2, "two words")
