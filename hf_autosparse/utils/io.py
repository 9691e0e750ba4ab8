"""Atomic writes and versioned JSON files."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

StrPath: TypeAlias = "str | os.PathLike[str]"

VERSION_KEY = "format_version"


@contextmanager
def replacing(path: StrPath, flush: bool = False) -> Iterator[Path]:
    """The path of a draft beside `path`, which replaces `path` when the block ends without an exception.

    Readers see the old file or the whole new one, never a part. The draft is removed after an exception; a killed
    process leaves it behind under a hidden name that ends in `.tmp`. Missing directories are made.

    Args:
        path: the file to write.
        flush: force the draft to disk before it replaces `path`, so that a power failure cannot leave an empty file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        yield draft
        if flush:
            flush_to_disk(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def flush_to_disk(path: StrPath) -> None:
    """Force a file's content to disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def write_text(path: StrPath, text: str, flush: bool = False) -> None:
    """Write a UTF-8 text file atomically. `flush`: see `replacing`."""
    with replacing(path, flush) as draft:
        draft.write_text(text, encoding="utf-8")


def write_versioned_json(
    path: StrPath, version: int, content: Mapping[str, Any], *, indent: int | None = 2, flush: bool = False
) -> None:
    """Write `{"format_version": version, **content}` atomically. `flush`: see `replacing`.

    Raises:
        TypeError: `content` holds what JSON cannot represent.
    """
    if VERSION_KEY in content:
        raise ValueError(f"content has a key {VERSION_KEY!r}, which is reserved for the version")
    write_text(path, json.dumps({VERSION_KEY: version, **content}, indent=indent) + "\n", flush)


def read_json_object(path: StrPath, most_bytes: int | None = None) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it is not valid JSON, holds something other than an object, or has more than `most_bytes` bytes.
    """
    path = Path(path)
    if most_bytes is not None and (size := path.stat().st_size) > most_bytes:
        raise ValueError(f"{path} has {size} bytes, expected at most {most_bytes}")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, expected a JSON object")
    return values


def read_versioned_json(path: StrPath, version: int) -> dict[str, Any]:
    """The content that `write_versioned_json` wrote, without the version.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it is not valid JSON, holds something other than an object, or has another version.
    """
    values = read_json_object(path)
    found = values.pop(VERSION_KEY, None)
    if found != version:
        raise ValueError(f"{path} has {VERSION_KEY} {found!r}, this release reads {version}: upgrade hf-autosparse")
    return values
