"""What the training scripts share: their command line, the folder they write to, and what they ran on."""

import argparse
import platform
from pathlib import Path

import accelerate
import torch
import transformers

import hf_autosparse


def parse_options(description: str, argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="the recipe, a YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the recipe")
    parser.add_argument("--resume", action="store_true", help="go on from the last whole checkpoint in output_dir")
    return parser.parse_args(argv)


def check_output(output: Path, *, resume: bool) -> None:
    """Raises FileExistsError where `output` holds an earlier run that is not to be resumed."""
    if not resume and (any(output.glob("checkpoint-*")) or (output / "result.json").exists()):
        raise FileExistsError(f"{output} holds an earlier run: give --resume, or another --set output_dir=...")


def environment() -> dict[str, str]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    modules = (hf_autosparse, torch, transformers, accelerate)
    return {"python": platform.python_version(), "device": device} | {m.__name__: m.__version__ for m in modules}
