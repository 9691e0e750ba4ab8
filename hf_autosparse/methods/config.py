"""`SparseConfig`: what the configurations of all methods share, and how one is read and written."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self, get_args

from ..utils.io import VERSION_KEY, StrPath, read_json_object, write_versioned_json
from ..utils.validation import check_boolean, check_choice, check_count, check_number, reject
from .distributions import Shapes
from .version_1 import to_version_2

CONFIG_NAME = "autosparse_config.json"
FORMAT_VERSION = 2

FirstLast = Literal["modules", "blocks", "none"]
Compute = Literal["dense", "sparse", "auto"]

_CLASSES: dict[str, type[SparseConfig]] = {}


@dataclass(frozen=True, kw_only=True)
class SparseConfig:
    """Base of all configurations; use that of a method, such as `AutoSparseConfig` or `RigLConfig`.

    A configuration is frozen: `dataclasses.replace(config, first_last="none")` gives a changed copy. Sparsity is the
    fraction of zeros, in [0, 1], throughout.

    Class attributes:
        method: the method's name in files and recipes.
        trains_with_zeros: whether the effective weight has zeros in training; False for a soft mask.

    Args:
        target_modules: patterns of the layers to sparsify; None for every Linear, Conv2d and Conv1D. Kept as a tuple.
        dense_modules: patterns of the layers to leave dense. A pattern is a module's full name, the end of one
            ("fc1", "layers.0"), or a glob over the full name ("model.decoder.*"); it covers everything below it.
        first_last: "modules": the first and the last layer stay dense; "blocks": also all of the first and the last
            block (the other reading of the paper's "first and last layers"); "none": no layer stays dense for its
            position.
        compute: how the CPU multiplies in training. "dense"; "sparse": Linear and Conv1D layers with at least 30 %
            zeros skip them, and compute the weight gradient only where the method needs it; "auto": sparse where that
            was measured faster on this machine (docs/speed.md). Results differ by rounding.

    Raises:
        ValueError: a value is not allowed; the message names the field, the value and what is allowed.
        TypeError: a field does not exist or is missing.
    """

    method: ClassVar[str]
    trains_with_zeros: ClassVar[bool] = True

    target_modules: Sequence[str] | None = None
    dense_modules: Sequence[str] = ()
    first_last: FirstLast = "modules"
    compute: Compute = "dense"

    def __post_init__(self) -> None:
        if not hasattr(type(self), "method"):
            raise TypeError(
                f"{type(self).__name__} is only a base: use a method's configuration such as AutoSparseConfig, or"
                ' SparseConfig.from_dict({"method": ...})'
            )
        self._freeze_patterns("target_modules", optional=True)
        self._freeze_patterns("dense_modules")
        self.check_choice("first_last", get_args(FirstLast))
        self.check_choice("compute", get_args(Compute))
        if self.compute != "dense" and not self.trains_with_zeros:
            raise ValueError(
                f"{self._label('compute')} = {self.compute!r} is not allowed: method {self.method!r} trains with a"
                " soft mask and so without zeros; leave it out"
            )

    # ---- What other rooms ask every configuration ----

    @property
    def sparsity_limit(self) -> float:
        """The sparsity at which a layer is held; 1 where the method needs no limit."""
        return 1.0

    def layer_sparsities(self, shapes: Shapes, least: Mapping[str, float] = MappingProxyType({})) -> dict[str, float]:
        """Each layer's share of a fixed budget, by name; 0 for a method without one.

        Args:
            least: name -> the sparsity that a layer has already, and does not fall below.
        """
        return dict.fromkeys(shapes, 0.0)

    # ---- Reading and writing ----

    def to_dict(self) -> dict[str, Any]:
        """`{"method": ..., field: value, ...}` in plain JSON types."""
        values = dataclasses.asdict(self)
        return {"method": self.method} | {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The configuration that `to_dict` turned into `values`; its class is that of `values["method"]`.

        Called on a method's own class, `method` may be left out. The older form, with a method's own settings in
        `options`, is read too.

        Raises:
            ValueError: the method is unknown or not that of this class, a key names no field of the configuration, a
                required field is missing, or a value is not allowed.
        """
        values = dict(values)
        found = cls._class_named(values.pop("method", getattr(cls, "method", None)))
        names = [field.name for field in dataclasses.fields(found)]
        if "options" in values:
            values = to_version_2({"method": found.method} | values, names)
            del values["method"]
        for key in values:
            if key not in names:
                raise ValueError(f"{found.__name__} has no field {key!r}: {_hint(key, names)}")
        for field in dataclasses.fields(found):
            optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
            if field.name not in values and not optional:
                raise ValueError(f"{found.__name__}.{field.name} is missing: method {found.method!r} needs it")
        return found(**values)

    @classmethod
    def _class_named(cls, method: object) -> type[Self]:
        if method is None:
            raise ValueError(f"no method is given: add one of {', '.join(available_methods())} as 'method'")
        if not isinstance(method, str) or method not in _CLASSES:
            raise reject("method", method, "one of " + ", ".join(repr(name) for name in available_methods()))
        found = _CLASSES[method]
        if not issubclass(found, cls):
            raise ValueError(
                f"method = {method!r} is that of {found.__name__}, not of {cls.__name__}: read it with"
                f" {found.__name__} or SparseConfig"
            )
        return found

    def save_pretrained(self, directory: StrPath) -> None:
        """Write `autosparse_config.json` into `directory` (made if absent), atomically."""
        write_versioned_json(Path(directory) / CONFIG_NAME, FORMAT_VERSION, self.to_dict())

    @classmethod
    def from_pretrained(cls, directory: StrPath) -> Self:
        """Read `autosparse_config.json` from a local directory; the method named there chooses the class.

        Raises:
            FileNotFoundError: the directory has no such file.
            ValueError: it is no JSON object, of an unknown version, or `from_dict` refuses it.
        """
        path = Path(directory) / CONFIG_NAME
        if not path.is_file():
            raise FileNotFoundError(f"no {CONFIG_NAME} in {directory}: was it written by save_pretrained?")
        values = read_json_object(path)
        version = values.pop(VERSION_KEY, None)
        if version not in (1, FORMAT_VERSION):
            raise ValueError(
                f"{path} has {VERSION_KEY} {version!r}, this release reads 1 and {FORMAT_VERSION}: upgrade"
                " hf-autosparse"
            )
        return cls.from_dict({"method": "autosparse", "options": {}} | values if version == 1 else values)

    # ---- Checks, for `__post_init__`: each raises ValueError naming the field, the value and what is allowed ----

    def check_number(
        self,
        field: str,
        low: float,
        high: float,
        *,
        optional: bool = False,
        low_open: bool = False,
        high_open: bool = False,
    ) -> None:
        """The field is a finite number between `low` and `high`; `_open` excludes the bound, `optional` allows None."""
        check_number(
            self._label(field),
            getattr(self, field),
            low,
            high,
            optional=optional,
            low_open=low_open,
            high_open=high_open,
        )

    def check_count(self, field: str, low: int = 1) -> None:
        """The field is a whole number, `low` or more."""
        check_count(self._label(field), getattr(self, field), low)

    def check_choice(self, field: str, allowed: Iterable[str]) -> None:
        """The field is one of `allowed`."""
        check_choice(self._label(field), getattr(self, field), allowed)

    def check_boolean(self, field: str) -> None:
        """The field is True or False."""
        check_boolean(self._label(field), getattr(self, field))

    def reject(self, field: str, allowed: str) -> ValueError:
        """The error that says that this field's value is not allowed, and what is."""
        return reject(self._label(field), getattr(self, field), allowed)

    def _label(self, field: str) -> str:
        return f"{type(self).__name__}.{field}"

    def _freeze_patterns(self, field: str, *, optional: bool = False) -> None:
        value = getattr(self, field)
        if value is None and optional:
            return
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) and v for v in value):
            raise self.reject(field, 'a list of module name patterns such as ["fc1", "decoder.layers.*"]')
        object.__setattr__(self, field, tuple(value))


def available_methods() -> list[str]:
    """The names that `SparseConfig.from_dict({"method": ...})` takes, sorted."""
    return sorted(_CLASSES)


def config_class(method: str) -> type[SparseConfig]:
    """The configuration class of a method. Raises KeyError for an unknown name."""
    return _CLASSES[method]


def add_config_class(config: type[SparseConfig]) -> None:
    """Make `from_dict` find this class under its `method`.

    Raises:
        ValueError: another class has this name.
    """
    known = _CLASSES.setdefault(config.method, config)
    if known is not config:
        raise ValueError(f"method {config.method!r} is already registered for {known}: choose another name")


def _hint(key: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(key), names, n=3, cutoff=0.5)
    others = [name for name in available_methods() if key in {f.name for f in dataclasses.fields(config_class(name))}]
    hints = [f"did you mean {' or '.join(near)}?"] if near else []
    if others:
        hints.append(f"methods with such a field: {', '.join(others)}")
    return " ".join(hints) or f"it has {', '.join(names)}"
