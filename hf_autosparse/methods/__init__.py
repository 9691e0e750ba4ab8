"""Sparsification methods, one file each: the method's configuration and its sparsifier.

Every module in this package registers its method on import. A new method's file needs this module only.
"""

import importlib
import pkgutil

from ..functional import largest, masked_weight, score_masked_weight
from .autosparse import AutoSparseConfig
from .base import CHANCE, Sparsifier, method_of, register
from .config import CONFIG_NAME, SparseConfig, available_methods, config_class
from .continuous import ContinuousConfig
from .dst import DSTConfig
from .fixed_mask import FixedMaskConfig
from .gmp import GMPConfig
from .itop import ITOPConfig
from .ltp import LTPConfig
from .masked import MaskedSparsifier, RandomMaskSparsifier, kept_count
from .mest import MESTConfig
from .nm import NMConfig
from .optg import OptGConfig
from .progress import Progress
from .rigl import RigLConfig
from .scl import SCLConfig
from .set_ import SETConfig
from .settings import Annealing, Budget, LearnedParameters, LearnedThresholds, Periodic, Target
from .snfs import SNFSConfig
from .str_ import STRConfig
from .swat import SWATConfig
from .topkast import TopKASTConfig

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "CHANCE",
    "CONFIG_NAME",
    "Annealing",
    "AutoSparseConfig",
    "Budget",
    "ContinuousConfig",
    "DSTConfig",
    "FixedMaskConfig",
    "GMPConfig",
    "ITOPConfig",
    "LTPConfig",
    "LearnedParameters",
    "LearnedThresholds",
    "MESTConfig",
    "MaskedSparsifier",
    "NMConfig",
    "OptGConfig",
    "Periodic",
    "Progress",
    "RandomMaskSparsifier",
    "RigLConfig",
    "SCLConfig",
    "SETConfig",
    "SNFSConfig",
    "STRConfig",
    "SWATConfig",
    "SparseConfig",
    "Sparsifier",
    "Target",
    "TopKASTConfig",
    "available_methods",
    "config_class",
    "kept_count",
    "largest",
    "masked_weight",
    "method_of",
    "register",
    "score_masked_weight",
]
