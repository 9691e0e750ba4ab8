"""Sparsification methods, one file each. Every module in this package registers its method on import."""

import importlib
import pkgutil

from .base import METHOD_FIELDS, Options, Progress, Sparsifier, get_method, register, registered_names

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def available_methods() -> list[str]:
    """Names that `AutoSparseConfig(method=...)` takes, sorted."""
    return registered_names()


__all__ = [
    "METHOD_FIELDS",
    "Options",
    "Progress",
    "Sparsifier",
    "available_methods",
    "get_method",
    "register",
]
