"""The core: pure functions over explicit tensors, which return new state.

These rules hold for all functions:

- ``mask`` is a boolean tensor of the shape S of the losses, True where the task is present. An
  absent task contributes nothing to the scalar or to any gradient, even where its loss is nan, and
  its state stays bit-identical. None: all tasks are present.
- ``priorities`` say how much each task matters. The default, the number 1, costs no operation. A
  task with priority 0 is treated as absent in that call, and the derivative in its priority is 0. A
  negative number is a ``ValueError``. The entries of a tensor are not checked.
- The shape S has at least one entry and any number of dimensions, also none.
- A tensor that is not floating-point is a ``TypeError``. A tensor or a mask of another shape than S
  is a ``ValueError``, and so is a mask that is not boolean.
"""

from ._checks import check_tensors
from ._presence import fill_absent, finite_and_present
from .constant import (
    constant_combine,
    constant_weights,
    mean_combine,
    mean_weights,
    sum_weights,
)
from .cosmos import cosmos, cosmos_weights
from .dwa import DWAState, dwa_accumulate, dwa_combine, dwa_init, dwa_step, dwa_weights
from .famo import FAMOState, famo_combine, famo_delta, famo_init, famo_update, famo_weights
from .geometric import geometric_mean, geometric_mean_weights
from .imtll import imtll_loss, imtll_weights
from .log_sum import log_sum, log_sum_weights
from .pbi import pbi, pbi_weights
from .random import random_combine, random_weights
from .relobralo import ReLoBRaLoState, relobralo_init, relobralo_update, relobralo_weights
from .stch import stch, stch_weights
from .uw import uw_loss, uw_weights

__all__ = [
    "DWAState",
    "FAMOState",
    "ReLoBRaLoState",
    "check_tensors",
    "constant_combine",
    "constant_weights",
    "cosmos",
    "cosmos_weights",
    "dwa_accumulate",
    "dwa_combine",
    "dwa_init",
    "dwa_step",
    "dwa_weights",
    "famo_combine",
    "famo_delta",
    "famo_init",
    "famo_update",
    "famo_weights",
    "fill_absent",
    "finite_and_present",
    "geometric_mean",
    "geometric_mean_weights",
    "imtll_loss",
    "imtll_weights",
    "log_sum",
    "log_sum_weights",
    "mean_combine",
    "mean_weights",
    "pbi",
    "pbi_weights",
    "random_combine",
    "random_weights",
    "relobralo_init",
    "relobralo_update",
    "relobralo_weights",
    "stch",
    "stch_weights",
    "sum_weights",
    "uw_loss",
    "uw_weights",
]
