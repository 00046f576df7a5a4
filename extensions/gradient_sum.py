"""The plain gradient of multitask learning: that of the summed losses (Bi et al. 2022)."""


def gradient_sum(losses, params):
    """Write the gradient of sum(losses.values()) into the `.grad` of `params`."""
    sum(losses.values()).backward()
