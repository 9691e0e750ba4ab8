"""A progress bar on stderr for what takes long."""

from __future__ import annotations

from typing import NoReturn

from tqdm import tqdm


def progress_bar(total: int, label: str | None, unit: str = "B") -> tqdm[NoReturn]:
    """A bar that counts up to `total` units; call its `update` with those just done. Use as a context manager.

    It shows after two seconds, on a terminal only, and is gone when done. No label: it never shows.
    """
    disable = True if label is None else None  # None: wherever stderr is no terminal
    return tqdm(total=total, desc=label, unit=unit, unit_scale=True, delay=2, leave=False, disable=disable)
