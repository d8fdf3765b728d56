"""Multi-task losses into one scalar: UW, IMTL-L, DWA and FAMO, as functions and as modules."""

from importlib.metadata import version

from .check import check_optimizer
from .distributed import all_reduce_losses
from .functional import (
    DWAState,
    FAMOState,
    dwa_accumulate,
    dwa_combine,
    dwa_init,
    dwa_step,
    dwa_weights,
    famo_combine,
    famo_delta,
    famo_init,
    famo_update,
    famo_weights,
    imtll_loss,
    imtll_weights,
    uw_loss,
    uw_weights,
)
from .history import History
from .modules import DWA, FAMO, IMTLL, UW, Scalarizer

__version__ = version("mtl-scalarize")

__all__ = [
    "DWA",
    "FAMO",
    "IMTLL",
    "UW",
    "DWAState",
    "FAMOState",
    "History",
    "Scalarizer",
    "all_reduce_losses",
    "check_optimizer",
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
    "imtll_loss",
    "imtll_weights",
    "uw_loss",
    "uw_weights",
]
