"""Linear layers of models that only infer in bf16 on a CPU: weights in the order in which oneDNN's products read them.

A plain layer's weights are put in that order anew for each product, which takes longer than the product itself where
rows are few: for the head of BLIP-base (30,524 x 768) and 16 rows two thirds of the time.
"""

from __future__ import annotations

import torch
from torch import nn


class PackedLinear(nn.Module):
    """A linear layer's results, to the bit; without gradients, and never to be cast or moved.

    Args:
        linear: in bf16, on a CPU for which :func:`can_pack`.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        # Neither parameter nor buffer: nobody can save, cast or move what has this order.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features), bf16."""
        packed: torch.Tensor = torch.ops.mkldnn._linear_pointwise(states, self._weight, self._bias, "none", [], "")
        return packed


def can_pack() -> bool:
    """Whether this torch has such products, and this CPU computes them in bf16."""
    operators = torch.ops.mkldnn
    needed = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    return all(hasattr(operators, name) for name in needed) and operators._is_mkldnn_bf16_supported()


def pack_linears(module: nn.Module) -> None:
    """Replace the linear layers of a model that only infers from now on, where that makes it faster."""
    if not can_pack():
        return
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child.weight.dtype is torch.bfloat16 and child.weight.device.type == "cpu":
                setattr(parent, name, PackedLinear(child))
