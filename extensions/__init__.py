"""The table of contents of the techniques: one technique a file, one dict a seam.

Scripts look a name up here and nowhere else. Each dict holds {name: Technique} (extensions/technique.py), the records
that the files make; `make` of a record is the function or class behind it. On the command line a technique is named by
a spec such as `layerwise:decay=0.85` (extensions/specs.py), the keys being the keyword arguments of its function:

    DROPOUT_SITES      {site: name of its modules}      where --dropout SITE=P sets a probability
    NORMS              fn(bert, ...)                    changes a loaded encoder in place: its normalisation,
    FFNS               the same                         its feed-forward,
    ATTENTIONS         the same                         its heads,
    POSITIONS          the same                         how it knows positions,
    ADAPT              the same                         and all else, in the order of the flags
    POOLING            cls(bert)(output, mask)          the encoding (B, C) of a sequence
    PAIR_FEATURES      fn(u, v)                         what a head reads of two encodings (B, C); no Technique
    HEADS              fn(in, hidden, out, dropout)     from an encoding to a task's logits
    OUTPUTS            cls(in, out)                     in place of a head's last layer, for some losses; no Technique
    PARAMETER_GROUPS   fn(model, lr, weight_decay, ...) which parameters share learning rate and weight decay
    TASK_LOSSES        fn(forward, ...) -> loss         of a ForwardPass: extensions/forward.py
    PENALTIES          the same                         a regularizer; forward.loss is the task's loss function
                       or a Penalty                     with state, or of the weights: penalties/_penalty.py
    TASK_WEIGHTS       cls(tasks)(losses) -> losses     how much each task's loss counts
    GRADIENTS          cls().backward(losses, params)   adds up .grad of {task: loss}, `combine` combines the tasks'
    SCHEDULES          cls(loaders, seed, epochs)(epoch) an epoch's Steps of {task: Part}
"""

from types import MappingProxyType

from extensions.architecture import ADDITIONS, ATTENTIONS, DROPOUT_SITES, FFNS, NORMS, POSITIONS
from extensions.gradients import GRADIENTS
from extensions.heads import HEADS, PAIR_FEATURES, POOLING
from extensions.losses import OUTPUTS, TASK_LOSSES
from extensions.penalties import PENALTIES, WeightPenalty, as_penalty
from extensions.schedules import SCHEDULES
from extensions.task_weights import TASK_WEIGHTS, TaskWeights
from extensions.tuning import PARAMETER_GROUPS, TUNING

ADAPT = {**TUNING, **ADDITIONS}
# The flags that change the encoder, in the order in which they are carried out.
ENCODER_FLAGS = MappingProxyType({"norm": NORMS, "ffn": FFNS, "attention": ATTENTIONS, "positions": POSITIONS,
                                  "adapt": ADAPT})

__all__ = ["ADAPT", "ATTENTIONS", "DROPOUT_SITES", "ENCODER_FLAGS", "FFNS", "GRADIENTS", "HEADS", "NORMS", "OUTPUTS",
           "PAIR_FEATURES", "PARAMETER_GROUPS", "PENALTIES", "POOLING", "POSITIONS", "SCHEDULES", "TASK_LOSSES",
           "TASK_WEIGHTS", "TaskWeights", "WeightPenalty", "as_penalty"]
