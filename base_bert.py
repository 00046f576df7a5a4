"""Weights in and out: initialisation, loading pretrained checkpoints of every naming, saving."""

import errno
import mmap
import os
import zipfile

import torch
import torch.nn as nn
from safetensors.torch import load_file, save

from config import DOWNLOAD_ARGUMENTS, BertConfig, PretrainedConfig
from files.errors import UserError
from files.pretrained import SAFE_WEIGHTS_NAME, WEIGHTS_NAME, pretrained_file
from files.writing import atomic_write, named
from utils import get_parameter_dtype

# Hugging Face's name of a part -> ours, for the keys below the optional prefix "bert.". The order counts:
# ".attention.output.dense." holds ".output.dense.".
HUGGING_FACE_NAMES = {
    "embeddings.word_embeddings.": "word_embedding.",
    "embeddings.position_embeddings.": "pos_embedding.",
    "embeddings.token_type_embeddings.": "tk_type_embedding.",
    "embeddings.LayerNorm.": "embed_layer_norm.",
    "embeddings.position_ids": "position_ids",
    "encoder.layer.": "bert_layers.",
    ".attention.self.": ".self_attention.",
    ".attention.output.dense.": ".attention_dense.",
    ".attention.output.LayerNorm.": ".attention_layer_norm.",
    ".intermediate.dense.": ".interm_dense.",
    ".output.dense.": ".out_dense.",
    ".output.LayerNorm.": ".out_layer_norm.",
    "pooler.dense.": "pooler_dense.",
}
# TensorFlow's names of a layer norm's scale and shift, still found in old checkpoints.
TENSORFLOW_NAMES = {".gamma": ".weight", ".beta": ".bias"}
WEIGHT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
MAX_HEADER_BYTES = 2**20  # of a .safetensors file: ten thousand tensors; bert-large's has 400
MISFITS = 50  # so many lines at most say what does not fit
SPARE_NUMBERS = 10**7  # that weights may lack before the lines say what is missing: 40 MB


def from_hugging_face(key):
    """Return our name of a checkpoint key, written by Hugging Face, by TensorFlow or by us."""
    key = key.removeprefix("bert.")
    for theirs, ours in {**HUGGING_FACE_NAMES, **TENSORFLOW_NAMES}.items():
        key = key.replace(theirs, ours)
    return key


def to_hugging_face(key):
    """Return Hugging Face's name of one of our keys: the inverse of `from_hugging_face`."""
    for theirs, ours in HUGGING_FACE_NAMES.items():
        key = key.replace(ours, theirs)
    return key


def load_tensors(path):
    """Read a dict of tensors from a .safetensors file, or from a pickle that holds nothing but tensors.

    Raises UserError for a damaged file and for a pickle that would run code.
    """
    if not str(path).endswith(".safetensors"):
        tensors = load_pickle(path, "Fetch it again, or use a model.safetensors in its place.")
        if not isinstance(tensors, dict):
            raise UserError(f"{path} holds a {type(tensors).__name__}, not a dict of tensors: these are no weights.")
        return tensors
    with named(path), open(path, "rb") as file:
        header = int.from_bytes(file.read(8), "little")
    try:
        if header > MAX_HEADER_BYTES:
            raise ValueError(f"its header claims {header:,} bytes")
        return load_file(path)
    except OSError:
        raise
    except Exception as error:  # SafetensorError, or what torch says to a dtype or a size that it does not know
        raise UserError(f"cannot read weights from {path}: {error}. Fetch the file again.") from error


def load_pickle(path, advice):
    """Read tensors and plain values that `torch.save` wrote, onto the CPU.

    Raises UserError, which ends in `advice`, for a damaged file, for one that would run code and for one that would
    take more memory than its own size.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            # What torch.load would do at any size: unpack what is compressed, and call bytearray(n).
            if content[:4] == b"PK\3\4":  # by which torch knows a zip file
                with zipfile.ZipFile(file) as archive:
                    records = archive.infolist()
                if any(record.compress_type != zipfile.ZIP_STORED for record in records):  # torch.save leaves it so
                    raise ValueError("it is compressed")
                unpacked = sum(record.file_size for record in records)
                if unpacked > len(content):
                    raise ValueError(f"{unpacked:,} bytes in a file of {len(content):,}")
            if content.find(b"\nbytearray\n") >= 0:
                raise ValueError("a bytearray is no tensor")
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle.UnpicklingError, or whatever else a hostile pickle provokes
        reason = error if isinstance(error, OSError) else error.__context__  # zipfile makes another error of it
        if isinstance(reason, OSError) and reason.errno != errno.EINVAL:  # which is of a place before the file's begin
            reason.filename = reason.filename or str(path)
            raise reason from error
        # torch's own message goes unquoted: it advises to turn the check off.
        raise UserError(f"{path} is damaged or holds more than tensors, and unpickling it could run code: refused. "
                        f"{advice}") from error


def numbers_held(tensors, path=None):
    """Return how many numbers tensors have in memory, where views and repetitions of one storage count once.

    Those of the file `path` are at most as many as it has room for: a pickle may ask for memory that nothing fills.
    """
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() // tensor.element_size()
                for tensor in tensors if is_dense(tensor)}
    held = sum(storages.values())
    return held if path is None else min(held, os.path.getsize(path) // 2)  # of two bytes or more


def is_dense(tensor):
    """Tell whether something is a tensor with its values in memory."""
    return isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and not tensor.is_meta


class BertPreTrainedModel(nn.Module):
    """Base class of the models: initial weights, `from_pretrained`, `save_pretrained`."""

    config_class = BertConfig

    def __init__(self, config: PretrainedConfig, *inputs, **kwargs):
        super().__init__()
        self.config = config
        self.name_or_path = config.name_or_path

    @property
    def dtype(self):
        """The dtype of the parameters."""
        return get_parameter_dtype(self)

    def init_weights(self):
        """Draw every module's initial weights."""
        self.apply(self._init_weights)

    def _init_weights(self, module):
        """Draw one module's weights: N(0, initializer_range²), zero biases, unit layer norms."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, (nn.Linear, nn.LayerNorm)) and module.bias is not None:
            nn.init.zeros_(module.bias)

    @classmethod
    def from_pretrained(cls, name_or_path, *model_args, **kwargs):
        """Return the model with pretrained weights, in evaluation mode.

        `name_or_path` is a hub id, a directory, a weights file, a URL, or "minilm" for the packaged
        weights; model.safetensors is preferred to pytorch_model.bin. Keywords: `config` (a config,
        or where to read one), `state_dict` (weights at hand, in place of the file's),
        `output_loading_info` (also return what did not fit), the download arguments of the contract;
        any other overrides the config attribute of its name, or goes to the model.
        Raises UserError when there is no such model, when its config.json or its weights are damaged or absurd (before
        anything of such a size is allocated), or with a list of missing and misshapen keys.
        """
        config = kwargs.pop("config", None)
        state_dict = kwargs.pop("state_dict", None)
        output_loading_info = kwargs.pop("output_loading_info", False)
        download = {name: kwargs.pop(name) for name in DOWNLOAD_ARGUMENTS if name in kwargs}

        if not isinstance(config, PretrainedConfig):
            source = config if config is not None else name_or_path
            config, kwargs = cls.config_class.from_pretrained(source, return_unused_kwargs=True, **download, **kwargs)
        config.validate(f"config.json of {config.name_or_path}" if config.name_or_path else "config")

        path = None
        if state_dict is None:
            path = pretrained_file(str(name_or_path), (SAFE_WEIGHTS_NAME, WEIGHTS_NAME), **download)
            state_dict = load_tensors(path)
        source, held = path or "state_dict", numbers_held(state_dict.values(), path)
        if config.num_parameters() > held + SPARE_NUMBERS:  # before anything of that size is allocated
            raise UserError(f"the weights in {source} are {held:,} numbers, and a model with this config.json has "
                            f"{config.num_parameters():,}: they do not fit. Fetch both from one model.")
        model = cls(config, *model_args, **kwargs)
        loading_info = model._load_pretrained(state_dict, source)
        model.eval()
        return (model, loading_info) if output_loading_info else model

    def _load_pretrained(self, state_dict, source):
        """Copy a checkpoint's tensors into this model; return what was left over."""
        own = self.state_dict()
        found = {from_hugging_face(str(key)): tensor for key, tensor in state_dict.items() if is_dense(tensor)}
        found.pop("position_ids", None)  # a constant, not a weight
        own.pop("position_ids", None)

        wrong = [f"missing {key}" for key in sorted(own.keys() - found.keys())]
        for key in sorted(own.keys() & found.keys()):
            if found[key].shape != own[key].shape:
                wrong.append(f"misshapen {key}: {tuple(found[key].shape)} in the file, {tuple(own[key].shape)} in the "
                             "model")
            elif found[key].dtype not in WEIGHT_DTYPES:
                wrong.append(f"no real numbers {key}: {found[key].dtype} in the file, {own[key].dtype} in the model")
        if wrong:
            more = [f"and {len(wrong) - MISFITS:,} more"] if len(wrong) > MISFITS else []
            raise UserError("\n  ".join([f"the weights in {source} do not fit {type(self).__name__} with this "
                                         "config.json:", *wrong[:MISFITS], *more]))
        for key in own:
            if not torch.stack(found[key].aminmax()).isfinite().all():
                raise UserError(f"the weights in {source} are damaged: {key} holds NaN or infinity. Fetch them again.")

        self.load_state_dict({key: found[key] for key in own}, strict=False)
        # The heads of pre-training (cls.*) are expected to be there and of no use here.
        unexpected = sorted(key for key in found.keys() - own.keys() if not key.startswith("cls."))
        return {"missing_keys": [], "unexpected_keys": unexpected, "mismatched_keys": [], "error_msgs": []}

    @torch.no_grad()
    def _require_plain(self):
        """Raise UserError unless a plain model of this config, with these weights, computes the same for two texts."""
        kind = next(kind for kind in type(self).__mro__ if not kind.__module__.startswith("extensions."))
        with torch.device("meta"):  # it takes over the weights, and draws none
            plain = kind(self.config)
        state = self.state_dict()
        reason = "other weights than one"
        if {key: tensor.shape for key, tensor in plain.state_dict().items()} == {
                key: tensor.shape for key, tensor in state.items()}:
            plain.load_state_dict(state, assign=True)
            modes = {module: module.training for module in self.modules()}
            length = min(8, self.config.max_position_embeddings)
            ids = torch.arange(2 * length, device=state["position_ids"].device).view(2, length) % self.config.vocab_size
            mask = torch.ones_like(ids)
            mask[1, -1] = 0
            with torch.autocast(ids.device.type, enabled=False):
                outputs = [model.eval()(ids, mask) for model in (self, plain)]
            for module, mode in modes.items():
                module.training = mode
            if not all(isinstance(output, dict) and "last_hidden_state" in output for output in outputs):
                return  # a class of one's own, with its keys
            ours, theirs = (output["last_hidden_state"][mask == 1] for output in outputs)
            if (ours - theirs).norm() <= 100 * torch.finfo(ours.dtype).eps * theirs.norm():
                return
            reason = "one's weights and computes something else"
        raise UserError(f"this encoder is no plain {kind.__name__}: it has {reason}. Merge what can be merged, as "
                        "merge(model) of extensions/lora.py does; all else is kept by checkpoints alone")

    def save_pretrained(self, directory):
        """Write config.json and model.safetensors, with Hugging Face's names, into `directory`.

        Raises UserError, and writes nothing, when a model made of the two would not compute what this one does.
        """
        self._require_plain()
        self.config.save_pretrained(directory)
        tensors = {to_hugging_face(key): tensor.contiguous() for key, tensor in self.state_dict().items()
                   if key != "position_ids"}
        with atomic_write(os.path.join(directory, SAFE_WEIGHTS_NAME), "wb") as file:
            file.write(save(tensors, metadata={"format": "pt"}))
