"""The plain task losses: cross-entropy of classes, of two classes, mean squared error."""

import torch.nn.functional as F

from extensions.technique import Range, Technique


def ce(forward, smoothing=0.0):
    """Return the mean cross-entropy of class logits (B, K) and int labels.

    With label smoothing (Szegedy et al. 2016, https://arxiv.org/abs/1512.00567, section 7) the target is
    (1 - smoothing) · onehot(y) + smoothing / K.
    """
    return F.cross_entropy(forward.logits, forward.labels, label_smoothing=smoothing)


def bce(forward):
    """Return the mean binary cross-entropy of one logit a row, (B,), and labels 0 or 1."""
    return F.binary_cross_entropy_with_logits(forward.logits, forward.labels.float())


def mse(forward):
    """Return the mean squared error of one score a row, (B,), and real labels."""
    return F.mse_loss(forward.logits, forward.labels.float())


CE = Technique(
    "ce", ce, paper="Szegedy et al. 2016, section 7 (smoothing), arxiv.org/abs/1512.00567",
    does="Cross-entropy of classes, with label smoothing if asked for.",
    use="The default for classes. smoothing=0.1 is in the best recipe; alone it had no clear effect.",
    aka=("cross-entropy", "nll", "softmax", "label-smoothing"), likely={"label_smoothing": "smoothing"},
    valid={"smoothing": Range(0, 1)}, kinds=("classes",))
BCE = Technique(
    "bce", bce, paper="Goodfellow, Bengio and Courville 2016, Deep Learning, section 6.2.2",
    does="Binary cross-entropy of one logit a row.", use="The default for yes or no, such as paraphrase.",
    aka=("binary-cross-entropy", "bce-with-logits", "logistic"), kinds=("binary",))
MSE = Technique(
    "mse", mse, paper="Goodfellow, Bengio and Courville 2016, Deep Learning, section 6.2.2",
    does="Mean squared error of one score a row.", use="The default for real labels, such as similarity.",
    aka=("l2", "mean-squared-error", "regression"), kinds=("real",))
