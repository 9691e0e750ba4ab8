"""Recipes: YAML files that hold everything a run depends on. One may extend another and override parts of it."""

import difflib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml


def load_recipe(
    path: str | Path, overrides: Sequence[str] = (), *, sections: Collection[str], optional: Collection[str]
) -> dict[str, Any]:
    """The recipe in the file `path`, over the recipe that it extends, changed by `overrides`.

    Args:
        overrides: `section.key=value`, where the value is JSON or else text. It replaces what stands under that key:
            `sparse.alpha_init=0.2` changes one field, `sparse={"method": "rigl"}` the whole section.
        sections: all that a recipe may have.
        optional: those among them that it may lack.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unknown or missing sections, or an override that names none; the message says what is allowed.
    """
    recipe = _read(Path(path), sections)
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise ValueError(f"--set {override!r}: expected section.key=value, such as training.max_steps=100")
        recipe = _replace(recipe, key.split("."), _value(value))
    for section in recipe:
        if section not in sections:
            near = difflib.get_close_matches(section, sections, n=1)
            raise ValueError(f"{path}: unknown section {section!r}; allowed: {sorted(sections)}; near: {near}")
    missing = set(sections) - set(optional) - recipe.keys()
    if missing:
        raise ValueError(f"{path}: missing section(s) {sorted(missing)}")
    return recipe


def _value(text: str) -> Any:
    """JSON where it is JSON, else the text itself. Not YAML, which reads `no` as false and `1e-3` as a text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _read(path: Path, sections: Collection[str]) -> dict[str, Any]:
    values = yaml.safe_load(path.read_text())
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, expected sections such as {sorted(sections)}")
    parent = values.pop("extends", None)
    return values if parent is None else _merge(_read(path.parent / parent, sections), values)


def _replace(section: dict[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """`section` with `value` in place of what stands at `path`; all else stays."""
    key, *rest = path
    if rest:
        inner = section.get(key)
        value = _replace(inner if isinstance(inner, dict) else {}, rest, value)
    return section | {key: value}


def _merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`change` over `base`, dictionaries merged key by key."""
    merged = dict(base)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
