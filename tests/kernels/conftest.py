import pytest
import torch


@pytest.fixture
def triton_device(monkeypatch) -> str:
    """Where the Triton kernels are tested: compiled on a GPU, else on the CPU by Triton's interpreter.

    The interpreter cuts float32 down to bfloat16 where a GPU rounds to nearest, and multiplies the bit patterns of
    bfloat16 matrices: these two are replaced.
    """
    if torch.cuda.is_available():
        return "cuda"
    interpreter = pytest.importorskip("triton.runtime.interpreter", reason="needs triton (on Linux: the dev extra)")
    import triton.language as tl

    builder = interpreter.InterpreterBuilder
    cast, dot = builder.cast_impl, builder.create_dot

    def rounding_cast(self, source, target):
        kinds = source.dtype.scalar, target.scalar
        if kinds == (tl.float32, tl.bfloat16):
            rounded = torch.tensor(source.data).bfloat16().view(torch.uint16).numpy()
            return interpreter.TensorHandle(rounded, tl.bfloat16)
        if kinds == (tl.bfloat16, tl.float32):
            exact = torch.tensor(source.data).view(torch.bfloat16).float().numpy()
            return interpreter.TensorHandle(exact, tl.float32)
        return cast(self, source, target)

    def exact_dot(self, a, b, *rest):
        return dot(self, *(rounding_cast(self, m, tl.float32) if m.dtype == tl.bfloat16 else m for m in (a, b)), *rest)

    for name in ("cast_impl", "create_fp_ext", "create_fp_trunc"):
        monkeypatch.setattr(builder, name, rounding_cast)
    monkeypatch.setattr(builder, "create_dot", exact_dot)
    return "cpu"
