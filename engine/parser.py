"""The command line's parser: files of flags, short and full help, the likely flag for an unknown one."""

import argparse
import math
import os
import re
import shlex
import sys
import textwrap

from extensions.listing import FLAGS as TECHNIQUE_FLAGS
from extensions.listing import listing
from extensions.specs import require_effect
from files.errors import Parser, nearest

# What other programs call a flag -> its name here: for the answer to an unknown flag, not as further names.
CALLED_ELSEWHERE = {
    "batch_size": "bs train_batch_size per_device_train_batch_size batch", "lr": "learning_rate lr_max peak_lr",
    "epochs": "num_train_epochs num_epochs n_epochs", "use_gpu": "gpu cuda device use_cuda", "seed": "random_seed",
    "hidden_dropout_prob": "dropout_prob dropout_rate dropout_p", "precision": "fp16 bf16 amp mixed_precision half",
    "weight_decay": "wd decay", "accumulate": "gradient_accumulation_steps grad_accum accumulation_steps",
    "warmup": "warmup_ratio warmup_steps num_warmup_steps", "lr_schedule": "scheduler lr_scheduler lr_scheduler_type",
    "pretrained": "model model_name model_name_or_path bert_model", "run_dir": "output_dir save_dir log_dir out_dir",
    "max_length": "max_seq_length max_len seq_len max_seq_len", "patience": "early_stopping early_stop",
    "max_grad_norm": "clip grad_clip clip_grad gradient_clipping", "init": "checkpoint load load_checkpoint ckpt",
    "option": "freeze freeze_bert finetune mode", "save_every": "save_steps", "eval_every": "eval_steps",
    "log_every": "logging_steps", "filepath": "save_path model_path", "skip_predictions": "no_predict do_not_predict",
    "help-all": "help_all helpall",
}


COURSE = "the course's flags"  # the title of their group


class HelpFormatter(argparse.HelpFormatter):
    """Help in two columns that names each default."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=30, width=100)

    def _split_lines(self, text, width):
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False, break_long_words=False)

    def _get_help_string(self, action):
        hidden = any(action.default is value for value in (None, False, argparse.SUPPRESS)) or action.default == []
        return action.help if hidden or "(default" in action.help else f"{action.help} (default: %(default)s)"


class Help(argparse.Action):
    """-h: the flags to know first; --help-all: all of them."""

    def __init__(self, option_strings, dest, help):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser, namespace, values, option_string=None):
        parser.print_text(parser.full_help() if option_string == "--help-all" else parser.short_help())


class List(argparse.Action):
    """--list FLAG: describe the techniques of a flag."""

    def __call__(self, parser, namespace, values, option_string=None):
        parser.print_text(listing(values))


class ArgumentParser(Parser):
    """A parser whose `@FILE` holds flags as on a command line, several to a line, with # comments.

    Groups whose title is in `first` make up the short help, with the flags whose names are in `first`.
    """

    def __init__(self, description=None, first=()):
        super().__init__(description=description, formatter_class=HelpFormatter, add_help=False)
        self.first = first
        self.general = argparse._ArgumentGroup(self, "help")  # listed last
        self.general.add_argument("-h", "--help", action=Help, help="show the flags to know first")
        self.general.add_argument("--help-all", action=Help, help="show all flags, grouped by what they are about")
        self.general.add_argument("--list", action=List, choices=tuple(TECHNIQUE_FLAGS), metavar="FLAG",
                                  default=argparse.SUPPRESS,
                                  help="describe the techniques of a flag, for instance --list penalty")

    def print_text(self, text):
        """Print a text and end the script."""
        sys.stdout.write(text)
        self.exit()

    def short_help(self):
        """Return the help on the course's flags and those that matter first."""
        formatter = self._get_formatter()
        formatter.add_text(f"usage: {self.prog} [FLAG ...] [@FILE]")
        formatter.add_text(self.description)
        rest = 0
        for group in (*self._action_groups, self.general):
            shown = [action for action in group._group_actions
                     if group.title in self.first or action.dest in self.first]
            rest += len(group._group_actions) - len(shown)
            if shown:
                formatter.start_section(group.title)
                formatter.add_arguments(shown)
                formatter.end_section()
        formatter.add_text(f"@FILE reads flags from FILE; see recipes/. --help-all shows {rest} more flags, such as "
                           "those that name single files; --list FLAG the techniques of one flag.")
        return formatter.format_help()

    def full_help(self):
        """Return the help on all flags, a section a group."""
        formatter = self._get_formatter()
        formatter.add_text(f"usage: {self.prog} [FLAG ...] [@FILE]")
        formatter.add_text(self.description)
        for group in (*self._action_groups, self.general):
            if group._group_actions:
                formatter.start_section(group.title)
                formatter.add_text(group.description)
                formatter.add_arguments(group._group_actions)
                formatter.end_section()
        formatter.add_text("@FILE reads flags from FILE; see recipes/.")
        return formatter.format_help()

    def likely(self, flag):
        """Return "; did you mean ...?" for a flag that does not exist, by meaning or by spelling."""
        word = flag.lstrip("-").replace("-", "_").lower()
        for name, others in CALLED_ELSEWHERE.items():
            if word in others.split() and f"--{name}" in self._option_string_actions:
                return f"; did you mean --{name}?"
        for table_flag, (table, *_) in TECHNIQUE_FLAGS.items():
            for name in table:
                if word == name.replace("-", "_") and f"--{table_flag}" in self._option_string_actions:
                    return f"; did you mean --{table_flag} {name}?"
        return nearest(flag, self._option_string_actions)

    def expand(self, argv, within=()):
        """Return `argv` with the flags of the files in place of each @FILE; `within` are the files around it."""
        flags = []
        for word in argv:
            flags += self.read(word[1:], within) if word.startswith("@") else [word]
        return flags

    def read(self, path, within):
        """Return the flags in a file; what is wrong with it ends the script, with file and line."""
        if os.path.realpath(path) in within:
            self.error(f"@{path} names itself, by way of {len(within)} files; take that line out")
        flags = []
        try:
            with open(path, "rb") as file:
                for line, text in enumerate(file, start=1):
                    if b"\0" in text:
                        raise ValueError("a NUL byte")
                    flags += shlex.split(text.decode("utf-8-sig" if line == 1 else "utf-8"), comments=True)
        except OSError as error:
            self.error(f"@{path} cannot be read ({error.strerror}); name a file of flags, as those in recipes/")
        except ValueError as error:  # no UTF-8, or a quotation that does not end
            self.error(f"{path}, line {line}: {error}; is it a file of flags, as those in recipes/?")
        return self.expand(flags, (*within, os.path.realpath(path)))

    def given(self, argv=None):
        """Parse a command line; return {name: value} of the flags that stand in it, without any default."""
        absent = object()
        gathers = (argparse._AppendAction, argparse._ExtendAction)  # they add to what is there: to None
        namespace = argparse.Namespace(**{action.dest: None if isinstance(action, gathers) else absent
                                          for action in self._actions if action.dest != argparse.SUPPRESS})
        self.parse_args(self.expand(sys.argv[1:] if argv is None else argv), namespace)
        return {name: value for name, value in vars(namespace).items() if value is not absent and value is not None}

    def defaults(self):
        """Return {name: default} of all flags."""
        return {**self._defaults, **{action.dest: self.get_default(action.dest) for action in self._actions
                                     if argparse.SUPPRESS not in (action.dest, action.default)}}


def number(kind, minimum, maximum=math.inf, below=math.inf):
    """Return an argparse type: an int or float from `minimum` to `maximum`, and less than `below`."""

    def check(text):
        value = kind(text)
        for right, bound in ((value >= minimum, f"at least {minimum}"), (value <= maximum, f"at most {maximum}"),
                             (value < math.inf, "finite"), (value < below, f"below {below}")):
            if not right:
                raise argparse.ArgumentTypeError(f"{text} must be {bound}")
        return value

    check.__name__ = kind.__name__  # argparse names it when the text is no number
    return check


def rows_or_share(text):
    """Return the rows N that a text names, or the text of a share, "P%"; for argparse."""
    if not re.fullmatch(r"[1-9]\d*|(\d+\.?\d*|\.\d+)%", text) or text.endswith("%") and not 0 < float(text[:-1]) <= 100:
        raise argparse.ArgumentTypeError(f"{text}: give a number of rows, or a share such as 10%")
    return text if text.endswith("%") else int(text)


def path_name(text):
    """Return the text, as an argparse type for the names of files and folders: any but an empty one."""
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty name; leave the flag out to get its default")
    return text


def spec_of(table, *words):
    """Return an argparse type that checks a technique's spec against `table` (or is one of `words`) and returns it."""

    def check(spec):
        try:
            if spec not in words:
                require_effect(spec, table)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return spec

    return check
