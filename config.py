"""The architecture as data: what a `config.json` says, as an object with attributes."""

import json
import os
from numbers import Integral, Real
from reprlib import repr as shortened
from urllib.parse import urljoin

from files.errors import UserError
from files.http import is_remote_url
from files.json_object import read_json
from files.pretrained import CONFIG_NAME, pretrained_file
from files.writing import atomic_write

# What from_pretrained hands to the download and not to the model.
DOWNLOAD_ARGUMENTS = ("cache_dir", "force_download", "resume_download", "proxies", "local_files_only",
                      "use_auth_token", "revision", "mirror")

# The largest architecture that is taken for one: the names of sizes and what they may be at most.
MAX_SIZES = {"vocab_size": 10**7, "hidden_size": 10**5, "num_hidden_layers": 200, "num_attention_heads": 10**5,
             "intermediate_size": 10**6, "max_position_embeddings": 10**6, "type_vocab_size": 10**4}


def check_number(source, name, value, least, most, kind=Integral):
    """Raise UserError unless a setting is a number of the kind, Integral or Real, from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= most:
        what = "an integer" if kind is Integral else "a number"
        raise UserError(f"{source}: {name} is {shortened(value)} and must be {what} from {least:,} to {most:,}")


def check_choice(source, name, value, choices):
    """Raise UserError unless a setting is one of the choices, which are all of one type."""
    if type(value) is not type(choices[0]) or value not in choices:
        raise UserError(f"{source}: {name} is {shortened(value)} and must be {' or '.join(map(repr, choices))}")


class PretrainedConfig:
    """Hold hyper-parameters as attributes; `BertConfig` gives them names and defaults."""

    model_type = ""

    def __init__(self, **kwargs):
        self.name_or_path = str(kwargs.pop("name_or_path", ""))
        for name, value in kwargs.items():
            setattr(self, name, value)

    @classmethod
    def from_pretrained(cls, name_or_path, **kwargs):
        """Read `config.json` of a hub id, directory, file or URL; keywords override what it says.

        With `return_unused_kwargs=True` returns (config, the keywords that are no attribute of it).
        Raises UserError when there is no such file or it is not a JSON object.
        """
        config_dict, kwargs = cls.get_config_dict(name_or_path, **kwargs)
        return cls.from_dict({**config_dict, "name_or_path": name_or_path}, **kwargs)

    @classmethod
    def get_config_dict(cls, name_or_path, **kwargs):
        """Return (the JSON object, the keywords that are not about downloading)."""
        download = {name: kwargs.pop(name) for name in DOWNLOAD_ARGUMENTS if name in kwargs}
        name_or_path = str(name_or_path)
        # The path of a weights file stands for the config.json beside it.
        if is_remote_url(name_or_path):
            source = urljoin(name_or_path, CONFIG_NAME)
        elif os.path.isfile(name_or_path) and not name_or_path.endswith(".json"):
            source = os.path.dirname(os.path.abspath(name_or_path))
        else:
            source = name_or_path
        path = pretrained_file(source, (CONFIG_NAME,), **download)
        config_dict = read_json(path)
        cls.check_names(path, config_dict)
        return config_dict, kwargs

    @classmethod
    def check_names(cls, source, names):
        """Raise UserError for a name that as an attribute would hide a method, or change the class."""
        for name in names:
            if not isinstance(name, str) or name == "self" or name[:2] == "__" or callable(getattr(cls, name, None)):
                raise UserError(f"{source}: {shortened(name)} is no name for a setting; get the file again")

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """Build from a plain dict; a keyword overrides the attribute of its name."""
        return_unused_kwargs = kwargs.pop("return_unused_kwargs", False)
        config = cls(**config_dict)
        unused = {}
        for name, value in kwargs.items():
            if hasattr(config, name):
                setattr(config, name, value)
            else:
                unused[name] = value
        return (config, unused) if return_unused_kwargs else config

    def to_dict(self):
        """Return the attributes as a plain dict, ready for JSON and for `from_dict`."""
        return {**vars(self), "model_type": self.model_type}

    def validate(self, source):
        """Raise UserError for a setting that no model can be built of; here any will do."""

    def num_parameters(self):
        """Return how many numbers the model's weights are at least; here nothing is known of them."""
        return 0

    def save_pretrained(self, directory):
        """Write `config.json` into `directory`, which is made when absent."""
        with atomic_write(os.path.join(directory, CONFIG_NAME)) as file:
            shared = {name: value for name, value in self.to_dict().items() if name != "name_or_path"}
            json.dump(shared, file, indent=2, sort_keys=True)
            file.write("\n")


class BertConfig(PretrainedConfig):
    """The shape of a BERT encoder; the defaults are bert-base-uncased (Devlin et al. 2019)."""

    model_type = "bert"

    def __init__(
        self,
        vocab_size=30522,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        hidden_act="gelu",
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        max_position_embeddings=512,
        type_vocab_size=2,
        initializer_range=0.02,
        layer_norm_eps=1e-12,
        pad_token_id=0,
        gradient_checkpointing=False,
        position_embedding_type="absolute",
        use_cache=True,
        **kwargs,
    ):
        kwargs.pop("model_type", None)
        super().__init__(pad_token_id=pad_token_id, **kwargs)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.gradient_checkpointing = gradient_checkpointing
        self.position_embedding_type = position_embedding_type
        self.use_cache = use_cache

    def validate(self, source):
        """Raise UserError, naming `source`, the setting and what is valid, unless `BertModel` can be built of it."""
        for name, most in MAX_SIZES.items():
            check_number(source, name, getattr(self, name), 1, most)
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps"):
            check_number(source, name, getattr(self, name), 0, 1, Real)
        if self.pad_token_id is not None:
            check_number(source, "pad_token_id", self.pad_token_id, 0, self.vocab_size - 1)
        check_choice(source, "hidden_act", self.hidden_act, ("gelu",))
        check_choice(source, "position_embedding_type", self.position_embedding_type, ("absolute",))
        check_choice(source, "gradient_checkpointing", self.gradient_checkpointing, (False, True))
        if self.hidden_size % self.num_attention_heads:
            raise UserError(f"{source}: hidden_size is {self.hidden_size} and must be a multiple of "
                            f"num_attention_heads, {self.num_attention_heads}")

    def num_parameters(self):
        """Return how many numbers the weights of `BertModel` are."""
        C, wide = self.hidden_size, self.intermediate_size
        embeddings = (self.vocab_size + self.max_position_embeddings + self.type_vocab_size + 2) * C
        layer = 4 * (C * C + C) + 2 * C * wide + wide + C + 4 * C
        return embeddings + self.num_hidden_layers * layer + C * C + C
