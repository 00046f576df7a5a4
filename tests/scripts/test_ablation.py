"""The ablation script: its file, its samples, what is run and what is not again, its table, per-task scores."""

import json

import pytest

from engine.run_folder import plain
from files.errors import UserError
from multitask_classifier import get_parser
from scripts import ablation
from tests.helpers.fixtures_tiny import write_course_files

ROWS = "# comment\nbase | --lr 1e-4\nmore steps | --max_steps 9\n\nbi | --pair_encoding bi\n"


def write_metrics(folder, *scores):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"kind": "train", "examples_per_second": rate} for rate in (9, 2, 5, None)] + [
        {"kind": "score", "epoch": i, "score": sum(dev.values()) / 3, "dev": dev} for i, dev in enumerate(scores)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def runs(monkeypatch):
    """Stand in for the training script; return the list of its command lines."""
    seen = []

    def train(command, **options):
        seen.append(command)
        run_dir = ablation.Path(command[command.index("--run_dir") + 1])
        seed = int(command[command.index("--seed") + 1])
        worse, better = ({"sst": 0.1 * seed, "para": 0.5, "sts": 0.0}, {"sst": 0.1 * seed, "para": 0.6, "sts": 0.2})
        write_metrics(run_dir, worse, better, worse)
        if "bi" in command:
            write_metrics(run_dir / "para", {"para": 0.7}, {"para": 0.9})
        (run_dir / "best.pt").write_text("12345")
        (run_dir / "best.json").write_text(json.dumps({
            "trained": 12345, "peak_bytes": 3 * 2**29, "commit": "abc",
            "args": {"use_gpu": False, "precision": "bf16" if "bf16" in command else "fp32"}}))
        return ablation.subprocess.CompletedProcess(command, "9" in command, "out", "what went wrong")
    monkeypatch.setattr(ablation.subprocess, "run", train)
    return seen


def test_what_runs_and_the_table(runs, tmp_path, capsys):
    (tmp_path / "rows.txt").write_text(ROWS)
    out = tmp_path / "out"
    flags = [str(tmp_path / "rows.txt"), "--out", str(out), "--seeds", "1", "3"]
    ablation.main([*flags, "--only", "base"])
    assert [command[1:6] for command in runs] == [["multitask_classifier.py", "--lr", "1e-4", "--seed", seed]
                                                 for seed in "13"]
    ablation.main(flags)
    assert len(runs) == 6  # base is not run again
    said = capsys.readouterr().err
    assert "failed: more steps, seed 1" in said and "what went wrong" in said
    table = (out / "table.md").read_text()
    # Twice (.1 and .3, .6, .2) with (r + 1) / 2: .433 and .5; with paraphrase .9 of its own model: .533 and .6.
    assert "| base | .200 ± .141 | .600 ± .000 | .200 ± .000 | .467 ± .047 |  |  | 1, 3 | 0.0 | 12,345 | 5.0 |" in table
    assert ("| bi | .200 ± .141 | .900 ± .000 | .200 ± .000 | .567 ± .047 | +.100 |  | 1, 3 | 0.0 | 12,345 | 5.0 | "
            "1.50 | `--pair_encoding bi` |") in table
    assert "more steps" not in table
    assert str(tmp_path) not in table and not list(out.glob("b*/*.pt"))
    ablation.main([*flags, "--", "--epochs", "1"])  # other runs
    assert len(runs) == 6 + 6
    result = json.loads((out / "results.jsonl").read_text().splitlines()[0])
    assert (result["checkpoint_bytes"], result["commit"], result["name"], result["share"]) == (5, "abc", "base", 100)
    assert result["precision"] == "fp32"


def test_an_interrupted_run_goes_on_and_another_does_not(runs, tmp_path, capsys):
    (tmp_path / "rows.txt").write_text("base | --loss sts=mse sts=pearson --dropout head=0.2\n")
    run_dir = tmp_path / "out" / "base-1"
    flags = [str(tmp_path / "rows.txt"), "--data_dir", str(tmp_path), "--out", str(tmp_path / "out"), "--seeds", "1"]

    def leave(run_dir, *said):
        """Leave what a run with these flags has left that a signal has stopped."""
        given = plain(get_parser().given([*ablation.read_rows_of(flags[0])[0][1], *said, "--seed", "1", "--data_dir",
                                          str(tmp_path), "--run_dir", str(run_dir), "--skip_predictions"]))
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "args.json").write_text(json.dumps({"args": {"given": {**given, "resume": True}}}))
        (run_dir / "last.pt").write_text("")
        (run_dir / "last.json").write_text(json.dumps({"finished": False}))

    leave(run_dir, "--lr", "1e-4")
    ablation.main(flags)
    assert "--resume" not in runs.pop()  # that was with another learning rate
    (tmp_path / "out" / "results.jsonl").unlink()
    leave(run_dir)
    ablation.main(flags)
    assert runs.pop()[-1] == "--resume"
    result = json.loads((tmp_path / "out" / "results.jsonl").read_text())
    assert result["seconds"] is None and "--resume" not in result["command"]
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| 1 |  | 12,345 |" in table
    runs.clear()
    capsys.readouterr()
    ablation.main([flags[0], "--table", str(tmp_path / "out" / "results.jsonl")])
    assert capsys.readouterr().out == table and not runs
    with open(tmp_path / "out" / "results.jsonl", "a", encoding="utf-8") as file:  # the last line of a name and seed
        for value, command in ((0.125, f"{result['command']} --max_grad_norm 2"), (0.25, "another")):
            file.write(json.dumps({**result, "overall": value, "command": command}) + "\n")
        file.write('{"name": "ba')
    ablation.main([flags[0], "--table", str(tmp_path / "out" / "results.jsonl")])
    said = capsys.readouterr()
    assert "| base | .100 | .600 | .200 | .125 |  |  | 1 |" in said.out and "line 4 is damaged" in said.err
    assert "base was measured with other flags than --loss sts=mse sts=pearson --dropout head=0.2" in said.err
    with pytest.raises(UserError, match="no results .*nowhere"):
        ablation.main([flags[0], "--table", "nowhere"])


def result(name, seed, overall, precision="fp32"):
    return {"name": name, "seed": seed, "overall": overall, "sst": 0.5, "para": 0.5, "sts": 0.5, "precision": precision}


def cells(table, name):
    """Return the cells "over base" and "verdict" of a row of a table."""
    line, = (line for line in table.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.split("|")[6:8]]


def test_differences_are_from_the_mean_of_the_base_and_judged_by_its_noise():
    rows = [("base", []), ("good", ["--a"]), ("bad", ["--b"]), ("near", ["--c"]), ("twice", ["--d"])]
    # The base: mean .600, sd .010. One run from a mean of five: 2 * .010 * sqrt(1 + 1/5) = .0219; two: .0167.
    base = [result("base", seed, 0.6 + 0.01 * step) for seed, step in enumerate((0, 1, -1, 1, -1), start=1)]
    results = [*base, result("good", 1, 0.623), result("bad", 2, 0.577), result("near", 1, 0.621),
               result("twice", 8, 0.618), result("twice", 9, 0.618)]
    table = ablation.table(rows, results)
    assert table.splitlines()[0] == ("fp32. Base: .600 ± .010 (seed 1, 2, 3, 4, 5). A run differs from this if it is "
                                     "more than .022 away (2 sd of a difference).")
    assert cells(table, "base") == ["", ""]
    assert cells(table, "good") == ["+.023", "helps"] and cells(table, "bad") == ["−.023", "hurts"]
    assert cells(table, "near") == ["+.021", "no clear effect"]
    assert cells(table, "twice") == ["+.018", "helps"]  # less than .022 is enough for two seeds


def test_every_precision_has_a_base_of_its_own():
    rows = [("base", []), ("other", ["--a"])]
    results = [result("base", 1, 0.6), result("other", 1, 0.61), result("other", 1, 0.7, "bf16")]
    first, second = ablation.table(rows, results).split("\n\nbf16. ")
    assert first.startswith("fp32. Base: .600 (seed 1). No verdicts") and cells(first, "other") == ["+.010", ""]
    assert second.startswith("The base has not been measured") and cells(second, "other") == ["", ""]


def test_a_share_of_the_rows(tmp_path):
    write_course_files(tmp_path / "data", rows=40)
    for _ in range(2):
        folder = ablation.sample_files(tmp_path / "data", tmp_path / "share", 10)
        lines = {path.name: len(path.read_text().splitlines()) for path in folder.glob("*.csv")}
        assert lines["quora-train.csv"] == lines["quora-dev.csv"] == 5 and lines["sts-dev.csv"] == 41
    assert (folder / "sts-train.csv").read_text().splitlines()[0] == "\tid\tsentence1\tsentence2\tsimilarity"


@pytest.mark.parametrize("text, flags, said", [
    ("base --lr 1\n", [], "line 1: 'base --lr 1' is not `NAME | flags`"), ("# nothing\n", [], "holds no row"),
    (ROWS, ["--only", "bae"], "--only bae: the rows of .* are base, more steps, bi")])
def test_mistakes(text, flags, said, tmp_path):
    (tmp_path / "rows.txt").write_text(text)
    with pytest.raises(UserError, match=said):
        ablation.main([str(tmp_path / "rows.txt"), "--out", str(tmp_path / "out"), *flags])


@pytest.mark.parametrize("name", ["ablation.txt", "encoder.txt"])
def test_the_rows_of_the_recipes_are_flags_of_the_script(name):
    from multitask_classifier import get_args
    rows = ablation.read_rows_of(ablation.ROOT / "recipes" / name)
    for name, flags in rows:
        get_args([*rows[0][1], *flags])
    assert len({name for name, _ in rows}) == len(rows) > 40


@pytest.mark.parametrize("name", ["ablation.txt", "encoder.txt"])
def test_the_tables_of_the_docs_are_those_of_their_results(name, capsys):
    docs = ablation.ROOT / "docs"
    for share in ("10", "100"):
        ablation.main([str(ablation.ROOT / "recipes" / name), "--table", str(docs / "results.jsonl"), "--share", share])
        table = capsys.readouterr().out
        assert table in (docs / "RESULTS.md").read_text(encoding="utf-8")
