"""."""

from extensions.gradients.cagrad import CAGrad
from extensions.gradients.gradient_sum import GradientSum
from extensions.gradients.gradvac import GradVac
from extensions.gradients.pcgrad import PCGrad

GRADIENTS = {"sum": GradientSum, "pcgrad": PCGrad, "gradvac": GradVac, "cagrad": CAGrad}
