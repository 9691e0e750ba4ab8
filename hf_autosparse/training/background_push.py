"""Pushes in the background: training goes on and deletes checkpoints, so a snapshot of the files is uploaded."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo

logger = logging.getLogger(__name__)

_SNAPSHOT = ".pushing-"


def take_snapshot(run: Path, folders: Mapping[str, Mapping[str, Path]]) -> Path:
    """Freeze files (folder -> path in it -> file) in a new directory inside `run`.

    Weights and states are linked, since they are never written in place; the rest (logs grow) is copied.
    """
    snapshot = Path(tempfile.mkdtemp(prefix=_SNAPSHOT, dir=run))
    for folder, files in folders.items():
        for name, source in files.items():
            target = snapshot / folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.suffix in (".safetensors", ".pt", ".pth", ".bin"):
                _link_or_copy(source, target)
            else:
                shutil.copy2(source, target)
    return snapshot


def remove_snapshots(run: Path) -> None:
    """Remove what a killed run left. No push may be in progress."""
    for snapshot in run.glob(_SNAPSHOT + "*"):
        shutil.rmtree(snapshot)


def sending_job(snapshot: Path, sends: list[Callable[[], CommitInfo]]) -> Callable[[], CommitInfo]:
    """A job for the Hub's own thread: send one commit after the other, then remove the snapshot."""

    def job() -> CommitInfo:
        try:
            return [send() for send in sends][-1]
        finally:
            shutil.rmtree(snapshot)

    return job


def report_failure(job: Future[Any], repo_id: str, level: int, remedy: str) -> None:
    """Training does not stop for the network; what could not be uploaded is said, and is on disk."""
    if job.done() and (error := job.exception()) is not None:
        logger.log(level, "a push to %s failed, the Hub keeps what it had; %s: %s", repo_id, remedy, error)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
