"""Images that cannot be read: named and counted in a file, tolerated up to a limit."""

from __future__ import annotations

import fcntl
import logging
from pathlib import Path

logger = logging.getLogger(__name__)


class CorruptImageError(ValueError):
    """More images than `max_corrupt` allows cannot be read."""


class CorruptImages:
    """The record of unreadable images of a run. All workers and processes write to the same file, each image once.

    Args:
        limit: how many are tolerated.
        path: one image a line, its name and, behind a tab, what is wrong; None to keep them in memory.
    """

    def __init__(self, limit: int, path: str | Path | None = None):
        self.limit = limit
        self.path = None if path is None else Path(path)
        self._known: dict[str, str] = {}

    def report(self, name: str, error: BaseException) -> None:
        """Note an unreadable image.

        Raises:
            CorruptImageError: with this one there are more than `limit`; names them.
        """
        if name in self._known:
            return
        self._known[name] = " ".join(f"{type(error).__name__}: {error}".split())
        names = self._add_to_file(name)
        logger.warning("image %s cannot be read (%s); it counts in neither loss nor accuracy", name, self._known[name])
        if len(names) > self.limit:
            listed = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            raise CorruptImageError(
                f"{len(names)} image(s) cannot be read, and data.max_corrupt allows {self.limit}: {listed}"
                f" (the last one: {self._known[name]}). Repair or remove them, or raise data.max_corrupt"
            ) from error

    def names(self) -> list[str]:
        """All that were reported, by whatever worker or process."""
        if self.path is None:
            return list(self._known)
        return _names(self.path.read_text()) if self.path.exists() else []

    def _add_to_file(self, name: str) -> list[str]:
        """Append `name` unless another process was faster; the names then in the file."""
        if self.path is None:
            return list(self._known)
        with self.path.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released on closing
            file.seek(0)
            names = _names(file.read())
            if name not in names:
                file.write(f"{name}\t{self._known[name]}\n")
                names.append(name)
        return names


def _names(text: str) -> list[str]:
    return [line.split("\t")[0] for line in text.split("\n") if line]
