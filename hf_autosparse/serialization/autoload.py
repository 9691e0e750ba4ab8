"""Teach transformers the packed format as soon as both packages are imported, in either order.

Importing transformers' model classes takes seconds, so `import hf_autosparse` alone must not do it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder

_REGISTRY = "transformers.quantizers.auto"


class _Watcher(MetaPathFinder):
    """Finds transformers' registry of quantizers as usual, and registers ours once it is loaded."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != _REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(Loader):
    def __init__(self, loader: Loader):
        self._loader = loader

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        self._loader.exec_module(module)
        module.__spec__.loader = self._loader
        _register()


def _register() -> None:
    importlib.import_module(".quantizer", __package__)


def install() -> None:
    """Register now if transformers' registry is loaded, else when it is."""
    if _REGISTRY in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _Watcher())
