"""A pickle that does something while it is being read, for the tests of whatever reads files that others made."""

import torch


class Payload:
    """What a pickle may hold: a function to call while it is being read, here one that makes the file `path`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def save_hostile(path, touched, key="extra", **options):
    """Save {key: payload, other tensors} to `path`; whoever unpickles all of it creates the file `touched`.

    Proves it before it returns, with `touched` gone again. `options` are those of torch.save.
    """
    torch.save({"pooler.dense.bias": torch.zeros(12), key: Payload(touched)}, path, **options)
    torch.load(path, weights_only=False)[key].close()
    touched.unlink()
