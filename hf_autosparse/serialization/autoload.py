"""`from_pretrained` for packed models as soon as this package and transformers are imported, in either order.

`import hf_autosparse` must not import transformers, which takes seconds, and transformers offers no entry points: a
quantization method is an entry in a dictionary of `transformers.quantizers.auto`, which exists once that module is
loaded. So an import hook adds ours at that moment. It cannot break transformers:

- It leaves finding and loading to the finders and loaders that are installed. Whatever goes wrong in itself makes it
  step aside, and is logged.
- All that it adds is one name in that dictionary. Everything else of transformers that loading needs is imported by
  `quantizer.py` when a packed model is loaded, not before. If transformers has moved it, that call raises an
  ImportError that names both versions, and nothing else is affected.
- If even the dictionary has moved, a packed model does not load silently either: the format sees to it that its tensors
  don't have the shapes of the model's.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from ..utils.version import __version__
from .files import QUANT_METHOD

logger = logging.getLogger(__name__)

_REGISTRY = "transformers.quantizers.auto"


class PackedEntry:
    """What transformers finds under the name of our quantization method; it stands for `quantizer.PackedConfig`."""

    @classmethod
    def from_dict(cls, values: dict[str, Any], **kwargs: Any) -> Any:
        """The `quantization_config` of a packed model's config.json as an object.

        Raises:
            ImportError: transformers lacks what loading needs.
            PackedFormatError: unknown keys, or a version that this release does not read.
        """
        try:
            from .quantizer import PackedConfig

            make: Callable[..., Any] = PackedConfig.from_dict  # transformers gives it no types
        except Exception as error:
            raise ImportError(_mismatch("cannot load packed models", error)) from error
        return make(values, **kwargs)


def _mismatch(what: str, error: Exception) -> str:
    found = getattr(sys.modules.get("transformers"), "__version__", "of an unknown version")
    return (
        f"hf_autosparse {__version__} {what} with transformers {found} ({type(error).__name__}: {error}): upgrade"
        " hf_autosparse, install a transformers that it supports, or unpack the model: hf-autosparse unpack"
    )


def _register(registry: ModuleType) -> None:
    try:
        registry.AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = PackedEntry
    except Exception as error:
        logger.warning(_mismatch("cannot register the packed format", error))


class _Finder(MetaPathFinder):
    """Has the registry found by the other finders, and loaded by a loader that registers our method afterwards."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _REGISTRY:
            return None
        try:
            spec = self._found_by_others(fullname, path, target)
            if spec is not None and hasattr(spec.loader, "exec_module"):
                spec.loader = _RegisteringLoader(spec.loader)
            return spec
        except Exception as error:
            logger.warning(_mismatch("cannot register the packed format", error))
            return None  # the other finders are asked next, without us

    def _found_by_others(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(fullname, path, target)) is not None:
                return spec
        return None


class _RegisteringLoader(Loader):
    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        _register(module)


def install() -> None:
    """Register our method now if transformers' registry is loaded, else when it is."""
    registry = sys.modules.get(_REGISTRY)
    if registry is not None:
        _register(registry)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
