"""--gradient: of `cls(**options)`, `backward(losses, params)` adds up .grad of {task: loss}, `combine` makes one."""

from extensions.gradients.cagrad import CAGRAD
from extensions.gradients.gradient_sum import GRADIENT_SUM
from extensions.gradients.gradvac import GRADVAC
from extensions.gradients.pcgrad import PCGRAD
from extensions.technique import by_name

GRADIENTS = by_name(GRADIENT_SUM, PCGRAD, GRADVAC, CAGRAD)
