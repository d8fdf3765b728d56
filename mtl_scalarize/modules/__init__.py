"""The shell: small modules that hold the state of the core in parameters and buffers."""

from .constant import Constant, Mean, Sum
from .dwa import DWA
from .famo import FAMO
from .geometric import GeometricMean
from .imtll import IMTLL
from .log_sum import LogSum
from .random import Random
from .relobralo import ReLoBRaLo
from .scalarizer import Scalarizer
from .stch import STCH
from .uw import UW

__all__ = [
    "DWA",
    "FAMO",
    "IMTLL",
    "STCH",
    "UW",
    "Constant",
    "GeometricMean",
    "LogSum",
    "Mean",
    "Random",
    "ReLoBRaLo",
    "Scalarizer",
    "Sum",
]
