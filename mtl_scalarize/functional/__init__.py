"""The core: pure functions over explicit tensors, that return new state."""

from .checks import check_tensors
from .constant import constant_combine, mean_weights, sum_weights
from .dwa import DWAState, dwa_accumulate, dwa_combine, dwa_init, dwa_step, dwa_weights
from .famo import FAMOState, famo_combine, famo_delta, famo_init, famo_update, famo_weights
from .geometric import geometric_mean, geometric_mean_weights
from .imtll import imtll_loss, imtll_weights
from .log_sum import log_sum, log_sum_weights
from .presence import fill_absent, measured
from .random import random_weights
from .relobralo import ReLoBRaLoState, relobralo_init, relobralo_update, relobralo_weights
from .stch import stch, stch_weights
from .uw import uw_loss, uw_weights

__all__ = [
    "DWAState",
    "FAMOState",
    "ReLoBRaLoState",
    "check_tensors",
    "constant_combine",
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
    "geometric_mean",
    "geometric_mean_weights",
    "imtll_loss",
    "imtll_weights",
    "log_sum",
    "log_sum_weights",
    "mean_weights",
    "measured",
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
