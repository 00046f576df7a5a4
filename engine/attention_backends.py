"""Back-ends of the encoder's attention: which kernel computes softmax(q kᵀ / √D + mask) v, or real tokens alone.

math spells the formula out; efficient (Rabe and Staats 2021, https://arxiv.org/abs/2112.05682) and flash (Dao et al.
2022, https://arxiv.org/abs/2205.14135) never hold all scores at once: torch chooses among them (auto), or is told.
cuDNN's is not among them: `utils.get_device` says why.
unpadded leaves padding out of all else that the layers compute: see unpadded.py. All give the same numbers, but for
rounding, so that a checkpoint knows nothing of it.

There is no cache of keys and values: it spares a decoder, which reads its own output word by word, to compute anew
those of the words before. An encoder reads a text once; what spares reading it again is feature_cache.py.
"""

import warnings

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bert import BertSelfAttention
from engine.unpadded import unpad
from extensions.encoder import is_frozen, overlay
from files.errors import UserError, lacks_memory

KERNELS = {"math": SDPBackend.MATH, "efficient": SDPBackend.EFFICIENT_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
BACKENDS = ("auto", *KERNELS, "unpadded")


def admits(kernel, device, dtype, masked=True, dropout=0.0, head_size=64):
    """Tell whether a kernel of KERNELS computes such an attention and its gradient, found out by trying.

    As of torch 2.13 flash takes no mask on CUDA and no dropout on the CPU, where there is no efficient.
    """
    device = torch.device(device)
    q = torch.zeros(1, 1, 8, head_size, device=device, dtype=dtype, requires_grad=True)  # (B, H, T, D)
    mask = torch.zeros(1, 1, 1, 8, device=device, dtype=dtype) if masked else None
    # The run's random numbers stay as they are; torch warns of why a kernel is none.
    with (torch.random.fork_rng([device] if device.type == "cuda" else []), warnings.catch_warnings(),
          torch.enable_grad()):
        warnings.simplefilter("ignore")
        try:
            with sdpa_kernel(KERNELS[kernel]):
                F.scaled_dot_product_attention(q, q, q, mask, dropout).sum().backward()
        except RuntimeError as error:
            if lacks_memory(error):
                raise
            return False
    return True


class ChosenKernel(BertSelfAttention):
    """`BertSelfAttention` by one kernel of torch's, `self.kernel`."""

    def attention(self, key, query, value, attention_mask):
        """Return dropout(softmax(q kᵀ / √D + mask)) v, heads joined: (B, T, C); see the parent."""
        with sdpa_kernel(self.kernel):  # here, not around the encoder: so also where a layer is computed again
            return super().attention(key, query, value, attention_mask)


def use_attention_backend(model, name, device, dtype=torch.float32):
    """Let the attentions of `model` use a back-end of BACKENDS, in place; return a line that says what is in use.

    `dtype` is what they compute in, the autocast's. Raises UserError where the back-end is not to be had with a mask
    and the attentions' dropout. What spells its product out is math whatever the name: packed_attention.py on the CPU
    with dropout. Attention that a technique has beside the layers' own stays as it is.
    """
    if name not in BACKENDS:
        raise UserError(f"--attention_backend {name}: choose one of {', '.join(BACKENDS)}")
    if name == "unpadded":
        try:
            inside, layers = unpad(model)
        except ValueError as error:
            raise UserError(f"--attention_backend unpadded: {error}") from error
        return f"real tokens alone in {inside} of {layers} layers"
    attentions = [module for module in model.bert.modules() if isinstance(module, BertSelfAttention)]
    # A frozen encoder may run without its dropout.
    dropout = 0.0 if is_frozen(model.bert) else max((module.dropout.p for module in attentions), default=0.0)
    sizes = {module.attention_head_size for module in attentions}

    def there(kernel, masked=True, dropout=dropout):
        return all(admits(kernel, device, dtype, masked, dropout, size) for size in sizes)

    if name == "auto" and torch.device(device).type not in ("cpu", "cuda"):  # elsewhere there is nothing to choose
        return "attention as torch has it"
    if name == "auto":
        return f"attention by {' or '.join(filter(there, KERNELS))}, as torch chooses"
    if not there(name):
        kind = torch.device(device).type
        without = ("; without dropout of attention it is there" if there(name, dropout=0.0) else
                   "; without a mask it is there, as unpadded has it in half precision" if there(name, masked=False)
                   else "")
        raise UserError(f"--attention_backend {name}: torch has none for {str(dtype).removeprefix('torch.')} on {kind} "
                        f"with a mask{' and dropout' if dropout else ''}{without}. Choose "
                        f"{', '.join(['auto', *filter(there, KERNELS)])} or unpadded")
    for module in attentions:
        if isinstance(module, ChosenKernel):
            module.kernel = KERNELS[name]
        else:
            overlay(module, ChosenKernel, kernel=KERNELS[name])
    return f"attention by {name}"
