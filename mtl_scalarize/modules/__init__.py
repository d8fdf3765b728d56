"""The shell: small modules that hold the state of the core in parameters and buffers."""

from .dwa import DWA
from .famo import FAMO
from .imtll import IMTLL
from .scalarizer import Scalarizer
from .uw import UW

__all__ = ["DWA", "FAMO", "IMTLL", "UW", "Scalarizer"]
