"""The Triton kernels compile for GPUs that need not be here, without registers spilled to memory."""

import os
import subprocess
import sys

import pytest

from paths import HELPERS


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_compile(capability, tmp_path):
    pytest.importorskip("triton", reason="needs triton (on Linux: the dev extra)")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, str(HELPERS / "compile_kernels.py"), str(capability)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 9 and all(line.endswith(" STACK:0") for line in lines), result.stdout
