"""Peak memory of pruning a model of 3 GB under a limit of 2 GB.

    python -m benchmarks.oneshot.memory --output runs/oneshot_memory

Writes a random Llama in bfloat16, block by block, and prunes it in a process whose data (RLIMIT_DATA: heap and private
mappings) may not pass the limit. The same process first shows that the limit holds: an allocation of the model's size
fails. Results go to benchmarks/results/oneshot. Timings are not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from benchmarks.oneshot.results import write

LIMIT = 2 * 1000**3  # bytes
HIDDEN, INNER, LAYERS, VOCABULARY = 2048, 5632, 28, 8192


def write_model(directory: Path) -> int:
    """A random model's directory; returns the bytes of its weights. One block is in memory at a time."""
    directory.mkdir(parents=True)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HIDDEN // 128,
        tie_word_embeddings=True,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(directory)
    generator = torch.Generator().manual_seed(1)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.empty(rows, columns).normal_(0, 0.02, generator=generator).bfloat16()

    weight_map: dict[str, str] = {}
    total = 0
    for layer in range(-1, LAYERS):
        name = f"model-{layer + 2:05d}-of-{LAYERS + 1:05d}.safetensors"
        if layer < 0:
            tensors = {
                "model.embed_tokens.weight": matrix(VOCABULARY, HIDDEN),
                "model.norm.weight": torch.ones(HIDDEN, dtype=torch.bfloat16),
            }
        else:
            prefix = f"model.layers.{layer}"
            tensors = {
                f"{prefix}.self_attn.{part}_proj.weight": matrix(HIDDEN, HIDDEN) for part in ("q", "k", "v", "o")
            }
            tensors |= {f"{prefix}.mlp.{part}_proj.weight": matrix(INNER, HIDDEN) for part in ("gate", "up")}
            tensors[f"{prefix}.mlp.down_proj.weight"] = matrix(HIDDEN, INNER)
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{prefix}.{norm}.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
        save_file(tensors, directory / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def prune_limited(source: Path, output: Path, size: int, method: str) -> None:
    """Prune under the limit, and print the peak as JSON. Runs in a process of its own."""
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    try:
        torch.empty(size, dtype=torch.uint8)
    except RuntimeError:
        refused = True
    else:
        refused = False
    from hf_autosparse import prune

    torch.set_num_threads(1)
    ids = torch.randint(0, VOCABULARY, (4, 1, 32), generator=torch.Generator().manual_seed(2))
    report = prune(source, method=method, calibration=[{"input_ids": batch} for batch in ids], output=output)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"refused": refused, "peak_bytes": peak, "sparsity": report.sparsity}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/oneshot_memory"))
    parser.add_argument("--method", default="wanda")
    parser.add_argument("--limited", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    dense, pruned = arguments.output / "dense", arguments.output / "pruned"
    if arguments.limited:
        prune_limited(dense, pruned, arguments.limited, arguments.method)
        return
    index = dense / "model.safetensors.index.json"
    if not index.is_file():
        shutil.rmtree(dense, ignore_errors=True)
        write_model(dense)
    size = json.loads(index.read_text())["metadata"]["total_size"]
    command = [sys.executable, "-m", "benchmarks.oneshot.memory", "--output", str(arguments.output)]
    command += ["--method", arguments.method, "--limited", str(size)]
    # Blocks of 1 MB or more go back to the system when they are freed, whatever glibc's heuristics say.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    measured = json.loads(done.stdout.splitlines()[-1])
    print(measured)
    row = {"method": arguments.method, "weights_bytes": size, "limit_bytes": LIMIT} | measured
    write("memory", [row])


if __name__ == "__main__":
    main()
