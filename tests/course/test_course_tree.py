"""bert.py and optimizer.py run inside the untouched course tree, beside the course's own three other modules.

The stand-ins below are minimal and define only names that the course's base_bert.py, config.py and utils.py define;
they import each other with a star, as the course's do.
"""
import ast
import builtins
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bert import BertModel
from config import BertConfig
from optimizer import AdamW

ROOT = Path(__file__).resolve().parents[2]

COURSE_NAMES = {
    "base_bert": "BertPreTrainedModel",
    "config": "PretrainedConfig BertConfig",
    "utils": "get_extended_attention_mask get_parameter_dtype cached_path hf_bucket_url get_from_cache is_remote_url "
             "http_get url_to_filename WEIGHTS_NAME CONFIG_NAME Dict List Optional Union Tuple torch nn Tensor",
}

STAND_INS = {
    "utils.py": '''
from typing import Dict, List, Optional, Union, Tuple
import os
import sys
import json
import copy
from functools import partial
from pathlib import Path
import torch
import torch.nn as nn
from torch import Tensor

WEIGHTS_NAME, CONFIG_NAME = "pytorch_model.bin", "config.json"

def is_remote_url(url_or_filename):
    raise AssertionError("no download here")

http_get = url_to_filename = hf_bucket_url = get_from_cache = cached_path = is_remote_url

def get_parameter_dtype(parameter):
    return next(parameter.parameters()).dtype

def get_extended_attention_mask(attention_mask, dtype):
    return -10000.0 * (1 - attention_mask.to(dtype))[:, None, None]
''',
    "config.py": '''
from utils import CONFIG_NAME, hf_bucket_url, cached_path, is_remote_url

class PretrainedConfig(object):
    def __init__(self, **kwargs):
        vars(self).update(kwargs)

class BertConfig(PretrainedConfig):
    model_type = "bert"

    def __init__(self, vocab_size=30522, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
                 intermediate_size=3072, hidden_act="gelu", hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1,
                 max_position_embeddings=512, type_vocab_size=2, initializer_range=0.02, layer_norm_eps=1e-12,
                 pad_token_id=0, gradient_checkpointing=False, position_embedding_type="absolute", use_cache=True,
                 **kwargs):
        super().__init__(pad_token_id=pad_token_id, **kwargs)
        given = dict(locals())
        vars(self).update({k: v for k, v in given.items() if k not in ("self", "kwargs", "__class__")})
''',
    "base_bert.py": '''
import re
from torch import device, dtype
from config import BertConfig, PretrainedConfig
from utils import *

class BertPreTrainedModel(nn.Module):
    config_class = BertConfig
    base_model_prefix = "bert"

    def __init__(self, config, *inputs, **kwargs):
        super().__init__()
        self.config = config
        self.name_or_path = config.name_or_path

    def init_weights(self):
        self.apply(self._init_weights)

    def _init_weights(self, module):
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, nn.LayerNorm):
                parameter.data.fill_(float(name == "weight"))
            else:
                parameter.data.normal_(0, self.config.initializer_range)

    @property
    def dtype(self) -> dtype:
        return get_parameter_dtype(self)
''',
}

SHAPE = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 24, "max_position_embeddings": 12}
IDS = torch.tensor([[1, 5, 9, 2, 0], [1, 7, 2, 0, 0], [1, 3, 4, 6, 2]])

# Runs in the course tree; the test repeats it on what it saves.
IN_THE_COURSE_TREE = """
import sys
sys.path.insert(0, ".")
from base_bert import *
import bert, optimizer

config = BertConfig(**{shape!r})
config.name_or_path = ""
torch.manual_seed(0)
model = bert.BertModel(config)
assert model.dtype == torch.float32
before = {{name: tensor.clone() for name, tensor in model.state_dict().items()}}
ids = torch.tensor({ids!r})

model.eval()
output = model(ids, (ids != 0).long())
adamw = optimizer.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
output["pooler_output"].square().sum().backward()
adamw.step()
torch.save({{"before": before, "output": dict(output), "after": model.state_dict()}}, "run.pt")

model.train()
assert model(ids, (ids != 0).long())["last_hidden_state"].shape == (3, 5, 16)
"""


def module_level(node):
    """Yield the nodes of a module that run when it is imported, functions' bodies left out."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from module_level(child)


def project_imports(path):
    """Return {module of this project: names imported from it} at module level; * for a plain or star import."""
    own = {p.stem for p in ROOT.glob("*.py")} | {p.name for p in ROOT.iterdir() if p.is_dir()}
    found = {}
    for node in module_level(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported = {alias.name: {"*"} for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {path.name}"
            imported = {node.module: {alias.name for alias in node.names}}
        else:
            continue
        for module, names in imported.items():
            if module.split(".")[0] in own:
                found[module] = found.get(module, set()) | names
    return found


@pytest.mark.parametrize("name", ["bert.py", "optimizer.py"])
def test_module_level_imports_are_the_three_allowed_ones(name):
    for module, names in project_imports(ROOT / name).items():
        assert names <= {"*", *COURSE_NAMES.get(module, "").split()}, f"{name} imports {names} from {module}"
        assert module in COURSE_NAMES


@pytest.mark.parametrize("name", ["bert.py", "optimizer.py"])
def test_names_that_a_star_import_must_supply_are_the_courses(name):
    tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    bound = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    bound |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    bound |= {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    bound |= {(alias.asname or alias.name).split(".")[0] for node in ast.walk(tree)
              if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names}
    assert used - bound - set(dir(builtins)) <= set(" ".join(COURSE_NAMES.values()).split())


def test_bert_and_adamw_run_in_the_course_tree_and_agree_with_ours(tmp_path):
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    for name in ("bert.py", "optimizer.py"):
        shutil.copy(ROOT / name, tmp_path)
    script = IN_THE_COURSE_TREE.format(shape=SHAPE, ids=IDS.tolist())
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stderr

    theirs = torch.load(tmp_path / "run.pt", weights_only=True)
    model = BertModel(BertConfig(**SHAPE)).eval()
    model.load_state_dict(theirs["before"])  # the same keys
    output = model(IDS, (IDS != 0).long())
    for name in ("last_hidden_state", "pooler_output"):
        torch.testing.assert_close(output[name], theirs["output"][name])
    output["pooler_output"].square().sum().backward()
    AdamW(model.parameters(), lr=0.01, weight_decay=0.1).step()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, theirs["after"][name])
