"""The core: pure functions over explicit tensors, that return new state."""

from .checks import check_tensors
from .dwa import DWAState, dwa_accumulate, dwa_combine, dwa_init, dwa_step, dwa_weights
from .famo import (
    FAMOState,
    famo_combine,
    famo_delta,
    famo_init,
    famo_update,
    famo_weights,
)
from .imtll import imtll_loss, imtll_weights
from .presence import fill_absent, measured
from .uw import uw_loss, uw_weights

__all__ = [
    "DWAState",
    "FAMOState",
    "check_tensors",
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
    "imtll_loss",
    "imtll_weights",
    "measured",
    "uw_loss",
    "uw_weights",
]
