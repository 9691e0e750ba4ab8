import pytest
import torch


@pytest.fixture
def triton_device(monkeypatch) -> str:
    """Where the Triton kernels are tested: compiled on a GPU, else on the CPU by Triton's interpreter.

    The interpreter cuts float32 down to bfloat16 where a GPU rounds to nearest, so this conversion is replaced.
    """
    if torch.cuda.is_available():
        return "cuda"
    interpreter = pytest.importorskip("triton.runtime.interpreter", reason="needs triton (on Linux: the dev extra)")
    import triton.language as tl

    cast = interpreter.InterpreterBuilder.cast_impl

    def rounding_cast(self, source, target):
        kinds = source.dtype.scalar, target.scalar
        if kinds == (tl.float32, tl.bfloat16):
            rounded = torch.tensor(source.data).bfloat16().view(torch.uint16).numpy()
            return interpreter.TensorHandle(rounded, tl.bfloat16)
        if kinds == (tl.bfloat16, tl.float32):
            exact = torch.tensor(source.data).view(torch.bfloat16).float().numpy()
            return interpreter.TensorHandle(exact, tl.float32)
        return cast(self, source, target)

    for name in ("cast_impl", "create_fp_ext", "create_fp_trunc"):
        monkeypatch.setattr(interpreter.InterpreterBuilder, name, rounding_cast)
    return "cpu"
