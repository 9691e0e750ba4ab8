"""Compiles the Triton kernels for GPUs that are not here, and prints what ptxas made of each: for test_compile.py."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hf_autosparse.kernels.triton import matvec as triton_matvec
from hf_autosparse.kernels.triton import threshold as triton_threshold


def compiled(kernel, types: dict[str, str], constants: dict[str, object], capability: int) -> str:
    """REG and STACK of a kernel whose arguments have these types; pointers and sizes are multiples of 16."""
    signature = {name: types.get(name, "constexpr" if name in constants else "i32") for name in kernel.arg_names}
    even = [i for i, name in enumerate(kernel.arg_names) if types.get(name, "").startswith("*") or name == "columns"]
    attributes = {(i,): [["tt.divisibility", 16]] for i in even}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    code = triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        said = subprocess.run([tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True)
    return " ".join(re.findall(r"(?:REG|STACK):\d+", said.stdout))


def main(capability: int) -> None:
    for layout in ((1, 2**20, 0), (4096, 1024, 0), (4096, 1024, 1)):
        *_, by_column, rows, columns = triton_threshold._Tiling(layout).arguments
        tile = {"BY_COLUMN": by_column, "R": rows, "C": columns}
        types = {"weight": "*fp32", "threshold": "*fp32", "result": "*bf16"}
        print("forward", layout, compiled(triton_threshold._forward, types, tile, capability))
        types |= {"grad": "*bf16", "alpha": "fp32", "grad_weight": "*fp32", "partial": "*fp64"}
        types.pop("result")
        print("backward", layout, compiled(triton_threshold._backward, types, tile, capability))
    for dtype, tokens in (("bf16", 1), ("bf16", 16), ("fp32", 1)):
        types = {name: f"*{dtype}" for name in ("x", "value", "bias", "y")} | {"bits": "*i32", "offset": "*i64"}
        constants = {"TOKENS": tokens, "R": 16, "WORDS": 8}
        print("product", dtype, tokens, compiled(triton_matvec._product, types, constants, capability))


if __name__ == "__main__":
    main(int(sys.argv[1]))
