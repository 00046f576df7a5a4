"""Check the prediction files and pack them, with the code, into the zip that the course takes.

`python prepare_submit.py` after both training scripts; `--part 1` for classifier.py's eight files alone, `--part 2`
for multitask_classifier.py's six. A submission with mistakes is refused with a list of them all.
"""

import ast
import importlib.util
import re
import sys
import zipfile
from collections import Counter
from pathlib import Path

from files.errors import Parser, UserError, described, run_script
from files.json_object import read_json
from files.predictions import WEIGHTS_RECORD
from files.writing import atomic_write, named, unwritable
from tasks import CLASSIFIER_TASKS, COURSE_TASKS, TASKS, is_finite, read_sound

ROOT = HERE = Path(__file__).resolve().parent
ZIP_NAME = "cs224n_default_final_project_submission.zip"
SCRIPTS = ("classifier.py", "multitask_classifier.py")  # what the packed code must run
NOT_PACKED = ("conftest.py", "tests", "benchmarks")
# classifier.py's --option, and the prefix that --fine-tune-mode (spring 2024) gives its files.
OPTIONS = (("pretrain", "last-linear-layer"), ("finetune", "full-model"))
MAX_BYTES = 2**26  # of a file to pack: the largest prediction file has 2 MB


def prediction_files(part, predictions_dir):
    """Return (names the file may have, task, split) of every prediction file of part "1", "2" or "all".

    Those of tasks beyond the course's need not be there, and are listed where they are.
    """
    files = []
    for split in ("dev", "test"):
        if part != "2":
            files += [(tuple(f"{prefix}-{task}-{split}-out.csv" for prefix in prefixes), task, split)
                      for prefixes in OPTIONS for task in CLASSIFIER_TASKS]
        if part != "1":
            paths = {task: Path(TASKS[task].prediction_file(predictions_dir, split)) for task in TASKS}
            files += [((path.name,), task, split) for task, path in paths.items()
                      if task in COURSE_TASKS or path.exists()]
    return files


def code_files(root):
    """Return the paths, relative to `root`, of its modules and of the modules in its packages, sorted."""
    files = [path for path in root.glob("*.py") if path.name not in NOT_PACKED]
    for package in root.iterdir():
        if (package / "__init__.py").is_file() and package.name not in NOT_PACKED:
            files += package.rglob("*.py")
    return sorted(path.relative_to(root) for path in files)


def parsed(path):
    """Return the syntax tree of a module, an empty one where it has none: this looks for imports alone."""
    try:
        return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ast.Module([], [])


def imports_of(path):
    """Return (module, names imported from it, whether at the top of the file) of each import of a file, a list."""
    tree, found = parsed(path), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, [], node in tree.body) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.append((node.module, [alias.name for alias in node.names], node in tree.body))
    return found


def is_installed(module):
    """Tell whether a top-level module is Python's or installed, and none of those beside this script."""
    if module in sys.stdlib_module_names:
        return True
    spec = importlib.util.find_spec(module)
    places = [*(spec.submodule_search_locations or [spec.origin])] if spec else []
    return any(Path(place).parent != HERE for place in places)


def missing_code(root):
    """Return the modules that SCRIPTS import, or what these import, and that are not there: paths relative to `root`.

    An import within a function or a condition counts only where its first name is there: it may be optional.
    """
    missing, seen, todo = [], set(), [Path(name) for name in SCRIPTS]

    def file_of(parts):
        package = Path(*parts, "__init__.py")
        return package if (root / package).is_file() else Path(*parts).with_suffix(".py")

    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        if not (root / path).is_file():
            missing.append(path)
            continue
        for module, names, at_top in imports_of(root / path):
            parts = module.split(".")
            if not (root / file_of(parts[:1])).is_file() and (not at_top or is_installed(parts[0])):
                continue
            todo += [Path(*parts[:i], "__init__.py") for i in range(1, len(parts))] + [file_of(parts)]
            if todo[-1].name == "__init__.py":
                bound = {getattr(node, name) for node in ast.walk(parsed(root / todo[-1]))
                         for name in ("id", "name", "asname") if hasattr(node, name)}
                modules = [file_of([*parts, name]) for name in names if name not in bound]
                todo += modules if "*" not in bound else []
    return sorted(missing)


def prediction_ids(path, form, labelled=True):
    """Return the ids that predictions for a data file must hold, in its order: those of the rows that are read."""
    return [row[-1] for row in read_sound(path, form, labelled)[0]]


def some(items, what):
    """Return "3 `what`: a, b, c" with the first few of `items`."""
    shown = ", ".join(str(item) for item in items[:5])
    return f"{len(items)} {what}: {shown}{', ...' if len(items) > 5 else ''}"


def read(path):
    """Return the bytes of a file to pack; raises UserError when it is no such file or cannot be read."""
    try:
        with named(path), open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(described(error)) from error
    if len(content) > MAX_BYTES:
        raise UserError(f"{path}: more than {MAX_BYTES // 2**20} MiB, which is no file of a submission; move it away")
    return content


def problems_in(path, task, expected_ids):
    """Return what is wrong with one prediction file, a line each; none when it may be handed in.

    It must hold every one of `expected_ids` once, in any order.
    """
    valid = TASKS[task].valid_predictions
    *others, last = valid or ["a finite number"]
    allowed = f"{', '.join(others)} or {last}" if others else last
    # Bytes count: no translation of line ends, and no traceback over bytes that are no UTF-8.
    first, *rows = read(path).decode("utf-8", errors="replace").split("\n")
    problems = []
    if first + "\n" != TASKS[task].header:
        problems.append(f"the header must be {TASKS[task].header!r}, not {first[:80]!r}")
    if rows and rows[-1] == "":
        rows.pop()
    else:
        problems.append("the last line does not end; the file was cut off")

    malformed, out_of_range, ids = [], [], Counter()
    for line, row in enumerate(rows, start=2):
        match = re.fullmatch(r"(\S+) , (\S+) ", row)
        if match is None:
            malformed.append(f"line {line} {row[:40]!r}")
            continue
        ids[match[1]] += 1
        fits = is_finite(match[2]) if valid is None else match[2] in valid
        if not fits:
            out_of_range.append(f"line {line} {match[2][:40]!r}")
    expected = set(expected_ids)
    for items, what in (
        (malformed, "rows not of the form 'id , prediction ' (with both spaces and the last, and \\n at the end)"),
        (out_of_range, f"predictions other than {allowed}"),
        ([sent_id for sent_id in expected_ids if sent_id not in ids], "ids missing"),
        ([sent_id for sent_id in ids if sent_id not in expected], "ids that the data file does not have"),
        ([sent_id for sent_id, count in ids.items() if count > 1], "ids repeated"),
    ):
        if items:
            problems.append(some(items, what))
    return problems


def check(part, data_dir, predictions_dir, out):
    """Return the paths of the part's prediction files; raise UserError with all that is wrong or missing."""
    problems = [f"{path.as_posix()}: missing from {ROOT}" for path in missing_code(ROOT)]
    predictions, expected_ids = {}, {}  # path -> (task, data file)
    for names, task, split in prediction_files(part, predictions_dir):
        found = [predictions_dir / name for name in names if (predictions_dir / name).exists()]
        if not found:
            script = "multitask_classifier.py"
            if len(names) > 1:
                script = f"classifier.py --option {names[0].partition('-')[0]}"
            problems.append(f"{predictions_dir / names[0]}: missing; {script} writes it")
        if len(found) > 1:
            problems.append(f"{found[0]} and {found[1]}: one prediction file under two names; remove the stale one")
        data = Path(TASKS[task].data_file(data_dir, split))
        predictions |= {path: (task, data) for path in found}
        if data not in expected_ids:
            try:
                expected_ids[data] = prediction_ids(data, TASKS[task].form, labelled=split != "test")
            except (UserError, OSError) as error:  # one line of the list
                problems.append(described(error) if isinstance(error, OSError) else str(error))
                expected_ids[data] = None

    members = list(members_of(predictions).values())
    for path in members:
        try:
            read(path)
        except UserError as error:
            problems.append(str(error))
            continue
        task, data = predictions.get(path, (None, None))
        if task and expected_ids[data] is not None:
            problems += [f"{path}: {problem}" for problem in problems_in(path, task, expected_ids[data])]

    if out.resolve() in {path.resolve() for path in (*members, *expected_ids)}:
        problems.append(f"{out}: the zip would take the place of a file that it is made of; name another --out")
    problems += unwritable([out])
    if problems:
        raise UserError("no zip was written, the submission is not ready:\n  - " + "\n  - ".join(problems))
    return list(predictions)


def warn_of_other_weights(paths, predictions_dir):
    """Print a warning for predictions that weights other than bert-base-uncased made, as far as it is recorded."""
    record, weights_of = predictions_dir / WEIGHTS_RECORD, {}
    if record.exists():
        try:
            weights_of = read_json(record, "which weights made the predictions cannot be told")
        except (UserError, OSError) as error:
            print(f"warning: {described(error) if isinstance(error, OSError) else error}", file=sys.stderr)
    for path in paths:
        weights = weights_of.get(path.name, "bert-base-uncased")
        if weights != "bert-base-uncased":
            print(f"warning: {path} was made with the weights '{weights}'; the course admits only bert-base-uncased "
                  "for grading", file=sys.stderr)


def members_of(prediction_paths):
    """Return {name in the zip: path} of code and predictions."""
    members = {path.as_posix(): ROOT / path for path in code_files(ROOT)}
    return members | {f"predictions/{path.name}": path for path in prediction_paths}


def write_zip(out, prediction_paths):
    """Write code and predictions to the zip `out`; equal contents give equal bytes."""
    contents = {name: read(path) for name, path in members_of(prediction_paths).items()}
    with atomic_write(out, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(contents):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix, so that the permissions count
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, contents[name])
    print(f"wrote {out}: {len(contents) - len(prediction_paths)} code files, "
          f"{len(prediction_paths)} prediction files, all checked")


def get_args(argv=None):
    """Return the parsed command line."""
    parser = Parser(description="Check the prediction files and pack the submission.")
    parser.add_argument("--part", choices=("1", "2", "all"), default="all",
                        help="1: classifier.py's files, 2: multitask_classifier.py's, all: both (default)")
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="where the course's data files are")
    parser.add_argument("--predictions_dir", type=Path, default=Path("predictions"))
    parser.add_argument("--out", type=Path, default=Path(ZIP_NAME))
    return parser.parse_args(argv)


def main(argv=None):
    """Check, warn, pack; UserError when something is amiss."""
    args = get_args(argv)
    paths = check(args.part, args.data_dir, args.predictions_dir, args.out)
    warn_of_other_weights(paths, args.predictions_dir)
    write_zip(args.out, paths)


if __name__ == "__main__":
    run_script(main)
