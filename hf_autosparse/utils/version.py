"""The version of this package. pyproject.toml reads it without importing the package, so this file imports nothing."""

__version__ = "0.1.0"
