"""The choice of the C library: which instruction set this machine uses, or why it uses plain torch.

The sources in csrc/ are compiled when the package is installed, else at first use into the user's cache. Where neither
works, callers take the plain torch route, and the log says so once.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

from ..environment import VARIABLE
from ..isolation import run_isolated
from .binding import Library, bind, library_file, supported_isas
from .build import BuildError, instruction_sets

logger = logging.getLogger(__name__)

Check = Callable[[Library], bool]

_checks: list[Check] = []
_lock = threading.RLock()
_choice: tuple[Library | None, str] | None = None


def register_check(check: Check) -> Check:
    """Register a kernel's small example, which every library has to compute right before it is used.

    Compilers have bugs, and wrong results are silent. The check is called once in a thread of its own, so that neither
    autocast nor any other setting of the caller reaches it; it must name the dtypes and devices of its tensors.

    Args:
        check: library -> whether its kernel agrees with torch. The file that calls the kernel registers it.
    """
    _checks.append(check)
    return check


def library() -> Library | None:
    """The C kernels for this machine, or None where it has to be plain torch. The first call may compile for seconds.

    The environment variable HF_AUTOSPARSE_KERNELS decides: "auto" (default), "torch" for none, or the name of an
    instruction set.

    Raises:
        ValueError: the variable has another value, or names what this machine cannot run.
    """
    return _choose()[0]


def status() -> str:
    """Which route this machine takes, and why."""
    return _choose()[1]


def _choose() -> tuple[Library | None, str]:
    global _choice
    if _choice is None:
        with _lock:
            if _choice is None:
                _choice = _load(os.environ.get(VARIABLE, "auto"))
                logger.log(logging.INFO if _choice[0] else logging.WARNING, "hf_autosparse kernels: %s", _choice[1])
    return _choice


def _load(wanted: str) -> tuple[Library | None, str]:
    isas = supported_isas()
    if wanted not in ("auto", "torch", *isas):
        known = wanted in instruction_sets()
        raise ValueError(
            f"{VARIABLE}={wanted!r}: {'this processor cannot run it' if known else 'unknown'}; allowed here are 'auto',"
            f" 'torch' and {isas}"
        )
    if wanted == "torch":
        return None, f"plain torch ({VARIABLE}=torch)"
    reasons = []
    try:
        path = library_file()
    except (BuildError, OSError) as error:
        return None, f"plain torch, because the C library cannot be built: {error}"
    for isa in isas if wanted == "auto" else [wanted]:
        try:
            candidate = bind(path, isa)
        except (BuildError, OSError) as error:
            reasons.append(str(error))
            continue
        if _computes(candidate):
            return candidate, f"C for {isa}, {path}" + "".join(f" ({reason})" for reason in reasons)
        reasons.append(f"{path} computes wrong results with {isa}")
    return None, f"plain torch, because {'; '.join(reasons)}"


def _computes(candidate: Library) -> bool:
    return run_isolated(lambda: all(check(candidate) for check in _checks))
