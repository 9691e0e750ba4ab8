"""Coverage-guided fuzzing of the reader of packed files: nothing but PackedFormatError may come out of it.

    pip install "hf-autosparse[fuzz]"
    python tests/helpers/fuzz_packed.py --inputs 120000 --json benchmarks/results/fuzz_packed.json

Atheris (libFuzzer) follows which lines of bitmask_format.py each input reaches, and keeps those that reach new ones. A
quarter of the inputs is changed byte by byte, an eighth behind the header only. In the others the header stays readable
JSON with a field changed, or a name doubled, moved or added; half of those get offsets that fit again, so that
safetensors accepts them and the checks of the packed format are reached. In half of the inputs the digests are made to
fit again, so that what lies behind their check is reached too. An escaped
exception, a hang of 10 s, a crash, or an address space grown by more than 512 MB ends the run with the input kept in a
file.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import platform
import random
import re
import resource
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

MAX_BYTES = 4096
BOUND = 512 * 2**20  # bytes
HANG = 10  # seconds
ITEM_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F4": 4, "I64": 64, "I32": 32}
ITEM_BITS |= {"U8": 8, "I8": 8, "BOOL": 8}
DTYPES = [*ITEM_BITS, "X", ""]
NUMBERS = [-1, 0, 1, 2, 7, 8, 9, 255, 2**16, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30]
NAMES = [
    "a.weight",
    "a.weight_bitmask",
    "c.weight",
    "a.weight_values",
    "a.weight_shape",
    "_shape",
    "b_bitmask",
    "__metadata__",
    "é\0",
]
VERSION_1 = {"format": "pt", "autosparse_format": "bitmask", "autosparse_format_version": "1"}
METADATA_VALUES = ["bitmask", "1", "2", "", "1.0", "pt", None, 1, {}, "{}", '{"a.weight":"00000000"}', "["]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=120_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        fuzz(options.child, options.inputs, options.seed)
        return
    with tempfile.TemporaryDirectory() as scratch:
        figures = run(Path(scratch), options.inputs, options.seed)
    print(json.dumps(figures, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def run(scratch: Path, inputs: int, seed: int) -> dict:
    """Fuzz in a process of its own, and read its figures from libFuzzer's last line."""
    command = [sys.executable, __file__, "--child", str(scratch), "--inputs", str(inputs), "--seed", str(seed)]
    start = time.perf_counter()
    process = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace")
    done = re.findall(r"#(\d+)\s+DONE\s+cov: (\d+) ft: (\d+) corp: (\d+)", process.stderr)
    if process.returncode != 0 or not done:
        sys.exit(f"{process.stderr[-5000:]}\nsomething escaped, or the fuzzer did not end (exit {process.returncode})")
    count, lines, features, corpus = map(int, done[-1])
    return {
        "inputs": count,
        "outcomes": json.loads((scratch / "outcomes.json").read_text()),
        "escaped": 0,
        "seconds": round(time.perf_counter() - start, 1),
        "coverage_edges": lines,
        "features": features,
        "inputs_that_reached_something_new": corpus,
        "seed": seed,
        "largest_input_bytes": MAX_BYTES,
        "address_space_bound_bytes": BOUND,
        "hang_limit_seconds": HANG,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("atheris", "safetensors", "numpy", "torch")},
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }


def fuzz(scratch: Path, inputs: int, seed: int) -> None:
    import atheris
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    import hf_autosparse  # noqa: F401  not instrumented

    with atheris.instrument_imports(include=["hf_autosparse.serialization.bitmask_format"]):
        from hf_autosparse.serialization.bitmask_format import PackedFile, PackedFormatError, encode, stored_keys
    from sealed import save_sealed

    corpus = scratch / "corpus"
    corpus.mkdir()
    seeds(corpus, encode, save_file, save_sealed, stored_keys, torch)
    path = scratch / "input.safetensors"
    outcomes = {"read": 0, "refused_by_safetensors": 0, "refused_by_this_package": 0}

    def one_input(content: bytes) -> None:
        path.write_bytes(content)
        try:
            with PackedFile(path) as file:
                for name, entry in file.entries.items():
                    assert sum(piece.numel() for piece in file.pieces(name)) == entry.count
                    assert tuple(file.dense(name).shape) == torch_shape(entry)
            outcomes["read"] += 1
        except PackedFormatError as error:
            foreign = isinstance(error.__cause__, SafetensorError)
            outcomes["refused_by_safetensors" if foreign else "refused_by_this_package"] += 1
        if sum(outcomes.values()) >= inputs - 1:  # libFuzzer leaves the process without Python's farewell
            (scratch / "outcomes.json").write_text(json.dumps(outcomes))

    def mutate(content: bytes, most: int, number: int) -> bytes:
        chance = random.Random(number)
        draw, changed = chance.random(), None
        if draw < 0.625:
            changed = changed_header(content, chance)
        elif draw < 0.75:
            changed = changed_payload(content, chance)
        if changed is None:
            changed = atheris.Mutate(content, most)
        return (sealed(changed) if chance.random() < 0.5 else changed)[:most]

    one_input(b"")  # loads what is loaded at first use, before the address space is bounded
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + BOUND, used + BOUND))
    arguments = [f"-runs={inputs}", f"-seed={seed}", f"-max_len={MAX_BYTES}", f"-timeout={HANG}", "-verbosity=1"]
    atheris.Setup([sys.argv[0], *arguments, str(corpus)], one_input, custom_mutator=mutate)
    atheris.Fuzz()


def torch_shape(entry) -> tuple[int, ...]:
    """torch holds two F4 numbers in one element, and so halves the last size."""
    return (*entry.shape[:-1], entry.shape[-1] // 2) if entry.dtype == "F4" else entry.shape


def seeds(corpus: Path, encode, save_file, save_sealed, stored_keys, torch) -> None:
    """Whole files to begin with: packed in each dtype, of several shapes, and a plain one."""
    for number, (dtype, shape) in enumerate(
        [(torch.float32, (2, 5)), (torch.float16, (3, 3, 3)), (torch.bfloat16, (16, 9)), (torch.float32, (1, 1))]
    ):
        weight = torch.arange(float(torch.Size(shape).numel())).remainder(3).reshape(shape).to(dtype)
        parts = encode(weight)
        save_sealed(
            {**dict(zip(stored_keys("a.weight"), parts, strict=True)), "a.bias": torch.ones(2)}, corpus / f"{number}"
        )
        first = zip(stored_keys("a.weight", 1), parts, strict=True)
        save_file({**dict(first), "a.bias": torch.ones(2)}, corpus / f"{number} of version 1", VERSION_1)
    save_file({"a.weight": torch.ones(2, 3)}, corpus / "plain")


def changed_header(content: bytes, chance: random.Random) -> bytes | None:
    """The file with one thing in its header changed, its length field adapted; None if it has no readable header."""
    try:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        keys = sorted(header)
        key = chance.choice(keys)
        entry = header[key]
    except (struct.error, ValueError, TypeError, IndexError, KeyError, RecursionError):
        return None
    match chance.randrange(6):
        case 0 if key != "__metadata__" and isinstance(entry, dict):
            entry["dtype"] = chance.choice(DTYPES)
        case 1 if key != "__metadata__" and isinstance(entry, dict):
            entry["shape"] = [chance.choice([chance.randrange(20), *NUMBERS]) for _ in range(chance.randrange(10))]
        case 2 if key != "__metadata__" and isinstance(entry, dict):
            entry["data_offsets"] = [chance.choice([chance.randrange(200), *NUMBERS]) for _ in range(2)]
        case 3:
            header["__metadata__"] = {name: chance.choice(METADATA_VALUES) for name in metadata_names(chance)}
        case 4:
            header[chance.choice(NAMES)] = header.pop(key)
        case _:
            header[chance.choice(NAMES)] = chance.choice([entry, None, [], 3, "x", {"dtype": "F32"}])
    payload = content[8 + length :]
    if chance.random() < 0.5:
        payload = fitted(header, payload)
    text = json.dumps(header)
    if chance.random() < 0.05:  # the same name twice
        text = text[:-1] + "," + text[1:]
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded + payload


def sealed(content: bytes) -> bytes:
    """The file with digests that fit its tensors, where they have some that can be made to fit."""
    from hf_autosparse.serialization.digest import Digest

    try:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        digests = {}
        for key in header.keys() - {"__metadata__"}:
            begin, end = header[key]["data_offsets"]
            digest = Digest(header[key]["dtype"], tuple(header[key]["shape"]))
            digest.update(np.frombuffer(content[8 + length :][begin:end], np.uint8))
            digests[key] = digest.hexdigest()
        if "autosparse_digests" not in header["__metadata__"]:
            return content
        header["__metadata__"]["autosparse_digests"] = json.dumps(digests)
    except (struct.error, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return content
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + content[8 + length :]


def changed_payload(content: bytes, chance: random.Random) -> bytes | None:
    """The file with a few bytes behind its header changed; None if there are none."""
    begin = 8 + int.from_bytes(content[:8], "little")
    if begin >= len(content):
        return None
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        changed[chance.randrange(begin, len(content))] = chance.choice([0, 1, 2, 127, 128, 255, chance.randrange(256)])
    return bytes(changed)


def fitted(header: dict, payload: bytes) -> bytes:
    """Give the tensors offsets that fit their dtypes and shapes, one after the other, where they are of sane size; and
    the payload the length for it."""
    end = 0
    for entry in header.values():
        try:
            size = ITEM_BITS[entry["dtype"]] * math.prod(entry["shape"]) // 8
        except (KeyError, TypeError):
            continue
        if isinstance(size, int) and 0 <= size <= MAX_BYTES:
            entry["data_offsets"] = [end, end + size]
            end += size
    return payload[:end].ljust(end, b"\1")


def metadata_names(chance: random.Random) -> list[str]:
    names = ["format", "autosparse_format", "autosparse_format_version", "autosparse_digests", "autosparse_extra"]
    return chance.sample(names, chance.randrange(len(names) + 1))


if __name__ == "__main__":
    main()
