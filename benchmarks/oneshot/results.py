"""Where the one-shot benchmarks write what they measured."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "oneshot"


def write(name: str, rows: list[dict[str, Any]]) -> None:
    """results/oneshot/NAME.json: the versions and the rows, in order."""
    versions = {package: importlib.metadata.version(package) for package in ("torch", "transformers")}
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"versions": versions, "rows": rows}, indent=2)
    (RESULTS / f"{name}.json").write_text(text + "\n")
