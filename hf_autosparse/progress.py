"""A progress bar on stderr for what takes long."""

from __future__ import annotations

from tqdm import tqdm


def byte_bar(total: int, label: str | None) -> tqdm:
    """A bar that counts up to `total` bytes; call its `update` with the bytes just done. Use as a context manager.

    It shows after two seconds, on a terminal only, and is gone when done. No label: it never shows.
    """
    disable = True if label is None else None  # None: wherever stderr is no terminal
    return tqdm(total=total, desc=label, unit="B", unit_scale=True, delay=2, leave=False, disable=disable)
