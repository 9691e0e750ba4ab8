"""Computing without the caller's settings."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def run_isolated(function: Callable[[], Result]) -> Result:
    """The function's result, computed as if nobody had changed torch's settings.

    It runs in a thread of its own, because torch keeps these settings per thread: autocast, gradient and inference
    mode, the default device, functorch's transforms, and every other mode that sees or changes operations. The default
    dtype belongs to the process, so `function` has to name the dtypes that it wants.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="hf_autosparse") as executor:
        return executor.submit(function).result()
