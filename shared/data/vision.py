"""torchvision, importable beside any build of torch: everything here imports it through this file.

The wheel that `pip` picks is built against CUDA. Beside a CPU build of torch its C extension does not load, and the
import then fails at the first operator that torchvision gives a shape function to ("operator torchvision::nms does
not exist"). Nothing in this project computes with those operators: declaring them is enough.
"""

import torch

_BOXES_TO_KEEP = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared: list[torch.library.Library] = []  # a library is undone when it is collected


def _declare_missing_operators() -> None:
    """Declare the operators torchvision's Python code insists on, without an implementation."""
    # A FRAGMENT, because a namespace may have one DEF only, and that belongs to the C extension.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(name + _BOXES_TO_KEEP)
    _declared.append(library)


try:
    import torchvision
except RuntimeError as error:
    if "operator torchvision::" not in str(error):
        raise
    _declare_missing_operators()
    import torchvision

from torchvision import models  # noqa: E402
from torchvision.transforms import v2 as transforms  # noqa: E402

__all__ = ["models", "torchvision", "transforms"]
