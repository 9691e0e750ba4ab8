"""What the user sets by environment variables: which kernels to use, and where built libraries and measurements lie."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "HF_AUTOSPARSE_KERNELS"


def cache_directory() -> Path:
    """Where this user's built libraries and measurements lie: $HF_AUTOSPARSE_CACHE, else ~/.cache/hf_autosparse."""
    if named := os.environ.get("HF_AUTOSPARSE_CACHE"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "hf_autosparse"
