"""The shell: small modules that hold the state of the core in parameters and buffers."""

from .constant import Constant as Constant
from .constant import Mean as Mean
from .constant import Sum as Sum
from .cosmos import COSMOS as COSMOS
from .dwa import DWA as DWA
from .famo import FAMO as FAMO
from .geometric import GeometricMean as GeometricMean
from .hyperparameters import Hyperparameter as Hyperparameter
from .imtll import IMTLL as IMTLL
from .log_sum import LogSum as LogSum
from .pbi import PBI as PBI
from .random import Random as Random
from .relobralo import ReLoBRaLo as ReLoBRaLo
from .scalarizer import Scalarizer as Scalarizer
from .scalarizer import Stateful as Stateful
from .stch import STCH as STCH
from .uw import UW as UW
