"""The top layers of the encoder once for every task, over layers that all tasks share.

As in MT-DNN (Liu et al. 2019, https://arxiv.org/abs/1901.11504) the tasks part above a shared encoder, only lower down.
"""

import copy

import torch.nn as nn

from bert import BertLayer
from extensions.technique import Range, Technique
from tasks import COURSE_TASKS


class TaskLayer(nn.Module):
    """A layer for each task, all of them copies of one to begin with."""

    def __init__(self, layer, tasks):
        super().__init__()
        self.by_task = nn.ModuleDict({task: copy.deepcopy(layer) for task in tasks})

    def forward(self, hidden_states, attention_mask, task):
        """Map hidden_states (B, T, C) and the additive mask (B, 1, 1, T) to (B, T, C), by the task's layer."""
        return self.by_task[task](hidden_states, attention_mask, task=task)


def task_layers(bert, top=1):
    """Replicate the `top` layers per task; nothing changes until training tells the copies apart.

    Of a copy as much is trained as of the layer by then: after `lora` its LoRA alone, before it the whole layer, and
    after `last-linear` nothing.

    Raises ValueError when there are not so many layers, or when another technique has replaced one of them.
    """
    L = len(bert.bert_layers)
    if not 1 <= top <= L:
        raise ValueError(f"top={top}, but this encoder has 1 to {L} layers to replicate")
    for i in range(L - top, L):
        if type(bert.bert_layers[i]) is not BertLayer:
            raise ValueError(f"layer {i} is no plain layer any more: name task-layers before what appends layers, and "
                             "not with what replaces them")
        bert.bert_layers[i] = TaskLayer(bert.bert_layers[i], getattr(bert, "tasks", COURSE_TASKS))
    bert.takes_task = True


TASK_LAYERS = Technique(
    "task-layers", task_layers, paper="Liu et al. 2019, arxiv.org/abs/1901.11504",
    does="The top layers once for every task, over layers that all share.",
    use="With several tasks and all rows: +.003 there (one seed), no clear effect on a tenth.",
    aka=("mt-dnn", "task-specific"), likely={"n": "top", "layers": "top"}, valid={"top": Range(1)})
