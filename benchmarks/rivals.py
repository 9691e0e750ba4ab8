"""Who else multiplies `x W^T`: a function for each, from weights and inputs to a call that multiplies them.

Each is optional. Where it is missing, `ModuleNotFoundError` is raised or `Missing`, with the reason.

    pip install onnx onnxruntime openvino scipy mkl
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_autosparse import kernels

Call = Callable[[], list]  # the products, one for each weight: (tokens, rows)
Rival = Callable[[list[Tensor], Tensor], Call]  # of weights (rows, cols) and one x (tokens, cols), float32


class Missing(Exception):
    """A rival that this machine lacks, and why."""


def dense(weights: list[Tensor], x: Tensor) -> Call:
    return lambda: [F.linear(x, weight) for weight in weights]


def own(weights: list[Tensor], x: Tensor) -> Call:
    matrices = [kernels.SparseMatrix(weight, kernels.library()) for weight in weights]
    return lambda: [matrix.product(x) for matrix in matrices]


def torch_bf16(weights: list[Tensor], x: Tensor) -> Call:
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        raise Missing("bfloat16 is not native on this processor")
    halves, y = [weight.bfloat16() for weight in weights], x.bfloat16()
    return lambda: [F.linear(y, weight) for weight in halves]


def torch_int8(weights: list[Tensor], x: Tensor) -> Call:
    layers = nn.ModuleList(nn.Linear(weight.shape[1], weight.shape[0], bias=False) for weight in weights)
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight = nn.Parameter(weight, requires_grad=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates this interface in favour of torchao
        layers = torch.ao.quantization.quantize_dynamic(layers, {nn.Linear}, dtype=torch.qint8)
    return lambda: [layer(x) for layer in layers]


# ---- Sparse: these take the activations transposed, which is not counted ----


def torch_csr(weights: list[Tensor], x: Tensor) -> Call:
    columns = x.T.contiguous()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that its CSR support is in beta
        matrices = [weight.to_sparse_csr() for weight in weights]
    return lambda: [(matrix @ columns).T for matrix in matrices]


def scipy_csr(weights: list[Tensor], x: Tensor) -> Call:
    from scipy.sparse import csr_array

    columns = x.T.contiguous().numpy()
    matrices = [csr_array(weight.numpy()) for weight in weights]
    return lambda: [(matrix @ columns).T for matrix in matrices]


def mkl_csr(weights: list[Tensor], x: Tensor) -> Call:
    """oneMKL's inspector-executor, told of the product beforehand and optimised for it."""
    library = _mkl()
    library.MKL_Set_Num_Threads(torch.get_num_threads())
    columns = x.T.contiguous()
    tokens = x.shape[0]
    results = [torch.empty(weight.shape[0], tokens) for weight in weights]
    matrices = [_MKLMatrix(library, weight, tokens) for weight in weights]

    def call() -> list[Tensor]:
        for matrix, result in zip(matrices, results, strict=True):
            matrix.product(columns, result)
        return [result.T for result in results]

    return call


class _Description(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("type", "mode", "diag")]


_GENERAL, _ROW_MAJOR, _NO_TRANSPOSE, _MANY = _Description(20, 0, 0), 101, 10, 1_000_000  # of mkl_spblas.h


class _MKLMatrix:
    def __init__(self, library: ctypes.CDLL, weight: Tensor, tokens: int):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            csr = weight.to_sparse_csr()
        starts, columns = csr.crow_indices().int(), csr.col_indices().int()
        self.arrays = (starts, columns, csr.values())  # keeps the memory that the handle points to
        self.library, self.tokens, self.handle = library, tokens, ctypes.c_void_p()
        rows, cols = weight.shape
        pointers = (starts.data_ptr(), starts.data_ptr() + 4, columns.data_ptr(), csr.values().data_ptr())
        create = library.mkl_sparse_s_create_csr
        create.argtypes = [ctypes.c_void_p, *[ctypes.c_int] * 3, *[ctypes.c_void_p] * 4]
        self._check(create(ctypes.addressof(self.handle), 0, rows, cols, *pointers))
        if tokens == 1:
            self._check(library.mkl_sparse_set_mv_hint(self.handle, _NO_TRANSPOSE, _GENERAL, _MANY))
        else:
            hint = library.mkl_sparse_set_mm_hint
            self._check(hint(self.handle, _NO_TRANSPOSE, _GENERAL, _ROW_MAJOR, tokens, _MANY))
        self._check(library.mkl_sparse_optimize(self.handle))
        library.mkl_sparse_s_mm.argtypes = [
            *(ctypes.c_int, ctypes.c_float, ctypes.c_void_p, _Description, ctypes.c_int),
            *(ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_float, ctypes.c_void_p, ctypes.c_int),
        ]
        library.mkl_sparse_s_mv.argtypes = [
            *(ctypes.c_int, ctypes.c_float, ctypes.c_void_p, _Description),
            *(ctypes.c_void_p, ctypes.c_float, ctypes.c_void_p),
        ]

    def product(self, columns: Tensor, result: Tensor) -> None:
        x, y, n = columns.data_ptr(), result.data_ptr(), self.tokens
        start = (_NO_TRANSPOSE, 1.0, self.handle, _GENERAL)
        if n == 1:
            self._check(self.library.mkl_sparse_s_mv(*start, x, 0.0, y))
        else:
            self._check(self.library.mkl_sparse_s_mm(*start, _ROW_MAJOR, x, n, n, 0.0, y, n))

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeError(f"oneMKL returned status {status}")

    def __del__(self):
        self.library.mkl_sparse_destroy(self.handle)


def _mkl() -> ctypes.CDLL:
    try:
        files = importlib.metadata.files("mkl") or []
    except importlib.metadata.PackageNotFoundError as error:
        raise Missing("not installed") from error
    paths = [file.locate() for file in files if file.name.startswith("libmkl_rt.so")]
    if not paths:
        raise Missing("the package mkl holds no libmkl_rt.so on this system")
    return ctypes.CDLL(str(paths[0].resolve()))


# ---- Runtimes: one exported model that multiplies one x with all the weights ----


def exported(weights: list[Tensor], tokens: int) -> bytes:
    """In the ONNX format: input `x`, outputs `y0`, `y1`, ..."""
    from onnx import TensorProto, helper, numpy_helper

    cols = weights[0].shape[1]
    names = range(len(weights))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"]) for i in names],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [tokens, cols])],
        [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [tokens, weights[i].shape[0]]) for i in names],
        [numpy_helper.from_array(weight.T.contiguous().numpy(), f"w{i}") for i, weight in enumerate(weights)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()


def onnxruntime_session(model: bytes | str):
    """Of an exported model, or of its file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def openvino_request(model: bytes | str):
    """Of an exported model, or of its file."""
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    core = openvino.Core()
    read = core.read_model(model) if isinstance(model, str) else core.read_model(model, b"")
    return core.compile_model(read, "CPU", settings).create_infer_request()


def onnxruntime_fp32(weights: list[Tensor], x: Tensor) -> Call:
    session, inputs = onnxruntime_session(exported(weights, x.shape[0])), {"x": x.numpy()}
    return lambda: session.run(None, inputs)


def onnxruntime_int8(weights: list[Tensor], x: Tensor) -> Call:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load_from_string(exported(weights, x.shape[0]))
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        logging.disable(logging.WARNING)  # it recommends a preparation that a lone product has no use for
        try:
            quantize_dynamic(model, file.name, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
        finally:
            logging.disable(logging.NOTSET)
        session, inputs = onnxruntime_session(Path(file.name).read_bytes()), {"x": x.numpy()}
    return lambda: session.run(None, inputs)


def openvino_fp32(weights: list[Tensor], x: Tensor) -> Call:
    import openvino

    request = openvino_request(exported(weights, x.shape[0]))
    request.set_input_tensor(openvino.Tensor(x.numpy(), shared_memory=True))
    outputs = [request.get_output_tensor(i).data for i in range(len(weights))]

    def call() -> list:
        request.infer()
        return outputs

    return call


# Whose time depends on the zeros, and whose does not.
SPARSE: dict[str, Rival] = {
    "dense": dense,
    "hf_autosparse": own,
    "torch CSR": torch_csr,
    "scipy CSR": scipy_csr,
    "oneMKL CSR": mkl_csr,
}
DENSE: dict[str, Rival] = {
    "torch bf16": torch_bf16,
    "torch int8": torch_int8,
    "ONNX Runtime": onnxruntime_fp32,
    "ONNX Runtime int8": onnxruntime_int8,
    "OpenVINO": openvino_fp32,
}


def prepared(rivals: dict[str, Rival], weights: list[Tensor], x: Tensor) -> tuple[dict[str, Call], dict[str, str]]:
    """Those that are there, each checked against the dense product, and for each other the reason.

    Raises:
        AssertionError: one that computes something else. int8 and bfloat16 may be wrong by 5 % of the largest product.
    """
    calls, missing = {}, {}
    for name, rival in rivals.items():
        try:
            calls[name] = rival(weights, x)
        except Missing as reason:
            missing[name] = str(reason)
        except ModuleNotFoundError as error:
            missing[name] = f"not installed: {error.name}"
    expected = dense(weights, x)()
    for name, call in calls.items():
        for y, right in zip(call(), expected, strict=True):
            error = (torch.as_tensor(y) - right).abs().max() / right.abs().max()
            assert error < (0.05 if "int8" in name or "bf16" in name else 1e-4), f"{name} is wrong by {error:.2e}"
    return calls, missing
