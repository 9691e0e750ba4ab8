import subprocess
from pathlib import Path

import pytest

from hf_autosparse.kernels.cpu.build import BuildError, compiler


@pytest.mark.slow
def test_kernels_stay_inside_their_buffers(tmp_path):
    """AddressSanitizer and UndefinedBehaviorSanitizer on odd shapes."""
    try:
        command = compiler()
    except BuildError as error:
        pytest.skip(str(error))
    probe = tmp_path / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    flags = ["-fopenmp", "-fsanitize=address,undefined", str(probe), "-o", str(tmp_path / "probe")]
    if subprocess.run([*command, *flags], capture_output=True).returncode:
        pytest.skip("the compiler has no sanitizers")
    subprocess.run([Path(__file__).with_name("sanitize.sh")], check=True)
