"""The architecture as data: what a `config.json` says, as an object with attributes."""

import json
import os
from urllib.parse import urljoin

from files import UserError, atomic_write
from utils import CONFIG_NAME, is_remote_url, pretrained_file

# What from_pretrained hands to the download and not to the model.
DOWNLOAD_ARGUMENTS = ("cache_dir", "force_download", "resume_download", "proxies", "local_files_only",
                      "use_auth_token", "revision", "mirror")


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
        try:
            with open(path, encoding="utf-8") as file:
                config_dict = json.load(file)
        except ValueError as error:
            raise UserError(f"{path} is not JSON ({error}); fetch the file again") from error
        if not isinstance(config_dict, dict):
            raise UserError(f"{path} must hold one JSON object, not {type(config_dict).__name__}; fetch it again")
        return config_dict, kwargs

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
