"""Reports on saved models: plain, sharded, packed, of strangers' making, huge, and hostile."""

import json
import struct
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils import prune
from transformers import BertConfig, BertForSequenceClassification, MixtralConfig, MixtralForCausalLM

from hf_autosparse import (
    AutoSparseConfig,
    PackedFormatError,
    finalize,
    layer_sparsity,
    pack,
    sparse_layers,
    sparsify,
    sparsity,
)
from hf_autosparse.reports.checkpoint import checkpoint_report
from hf_autosparse.reports.trajectory import LayerCost, Moment, Trajectory
from hf_autosparse.serialization.bitmask_format import PIECE, PackedFile, encode
from hf_autosparse.serialization.reader import is_zero, zeros_in
from hf_autosparse.training.checkpoint import save_native_state
from tiny import tiny_translator

FFN = ("model.encoder.layers.0.fc1", "model.encoder.layers.0.fc2")


def sparse_translator():
    return sparsify(tiny_translator(), AutoSparseConfig(threshold_init={"sparsity": 0.7}))


def tiny_bert():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForSequenceClassification(BertConfig(vocab_size=200, **sizes))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A run's output: the deployable model and its trajectory, in which two layers are sparse."""
    path = tmp_path_factory.mktemp("run")
    model = sparsify(tiny_translator(), AutoSparseConfig(threshold_init={"sparsity": 0.5}, target_modules=list(FFN)))
    finalize(model).save_pretrained(path)
    costs = {FFN[0]: LayerCost(30, 384), FFN[1]: LayerCost(10, 384), "lm_head": LayerCost(60, 960)}
    moments = [
        Moment(0, 0.0, 0.5, (0.1, 0.1), (0.0, 0.0), (0.1, 0.2)),
        Moment(9, 1.0, 0.0, (0.5, 0.5), (0.5, 0.5), (0.3, 0.4)),
    ]
    Trajectory(10, list(FFN), costs, moments).save(path)
    return path


# ---- Right figures ----


def test_counts_by_hand(tmp_path):
    tensors = {
        "a.weight": torch.tensor([[0.0, -0.0, 1.0, 2.0]]),  # 2 zeros of 4
        "b.weight": torch.ones(4, 2, 3, dtype=torch.bfloat16),
        "a.bias": torch.zeros(3),
        "steps": torch.zeros(5, dtype=torch.int64),
    }
    tensors["b.weight"][1:] = 0  # 18 of 24
    save_file(tensors, tmp_path / "model.safetensors")
    report = checkpoint_report(tmp_path)
    found = {row.name: (row.shape, row.dtype, row.sparsity, row.threshold, row.mac_share) for row in report.layers}
    assert found == {"a": ((1, 4), "F32", 0.5, None, None), "b": ((4, 2, 3), "BF16", 0.75, None, None)}
    assert report.weights == 28 and report.sparsity == pytest.approx(20 / 28)
    assert (report.values, report.zeros) == (31, 23)  # the bias too; integers are not counted
    assert "dtype I64" in report.dense["steps"] and "bias" in report.dense["a.bias"]
    assert report.stored_bytes == (tmp_path / "model.safetensors").stat().st_size
    assert checkpoint_report(tmp_path / "model.safetensors").layers == report.layers


@pytest.mark.parametrize("form", ["plain", "sharded", "packed"])
def test_agrees_with_the_live_model(form, tmp_path):
    model = finalize(sparse_translator())
    if form == "packed":
        pack(model, tmp_path / form)
    else:
        model.save_pretrained(tmp_path / form, max_shard_size="8KB" if form == "sharded" else "1GB")
    if form == "sharded":
        assert len(list((tmp_path / form).glob("*.safetensors"))) > 2
    report = checkpoint_report(tmp_path / form)
    rows = {row.name: row.sparsity for row in report.layers if row.name != "model.shared"}  # has a padding row
    assert rows == pytest.approx(layer_sparsity(model))
    assert report.packed == (len(rows) if form == "packed" else 0)
    state = load_file(tmp_path / "plain" / "model.safetensors") if form == "plain" else model.state_dict()
    state.pop("model.encoder.embed_tokens.weight", None)  # tied
    if form == "plain":
        assert report.values == sum(t.numel() for t in state.values())
        assert report.zeros == sum((t == 0).sum().item() for t in state.values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_zeros_of_every_dtype(dtype):
    piece = torch.tensor([0.0, -0.0, 1.0, -2.0, float("nan"), 2**-9]).to(dtype)
    assert zeros_in(piece) == 2 and is_zero(piece).tolist() == [True, True, False, False, False, False]


def test_a_run_of_ours(directory):
    report = checkpoint_report(directory)
    first, second = report.layers
    assert (first.name, first.threshold, first.mac_share) == (FFN[0], 0.3, 0.3)
    assert (second.name, second.threshold, second.mac_share) == (FFN[1], 0.4, 0.1)
    assert report.dense["model.shared.weight"] == "1.67% zeros"  # the padding row; the run did not train it sparse
    assert report.inference_fraction == pytest.approx(1 - 0.5 * 0.3 - 0.5 * 0.1)
    forward = 1 - 0.1 * 0.4, 1 - 0.5 * 0.4  # of the 9 steps with a dense weight gradient, and of the last one
    assert report.training_fraction == pytest.approx((9 * (2 * forward[0] + 1) / 3 + forward[1]) / 10)


def test_layers_that_the_saved_model_calls_otherwise(tmp_path):
    """transformers stores Mixtral's projections and experts under names that differ from the live model's."""
    save_file({"renamed.weight": torch.eye(4)}, tmp_path / "model.safetensors")
    moment = Moment(1, 1.0, None, (0.5,), (0.0,), (0.3,))
    Trajectory(1, ["live"], {"live": LayerCost(8, 16), "dense": LayerCost(2, 4)}, [moment]).save(tmp_path)
    report = checkpoint_report(tmp_path)
    (row,) = report.layers
    assert (row.name, row.sparsity, row.threshold, row.mac_share) == ("renamed", 0.75, None, None)
    assert report.inference_fraction == pytest.approx((0.5 * 8 + 2) / 10)  # with the recorded sparsity


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_thresholds_of_a_native_state(granularity, tmp_path):
    config = AutoSparseConfig(threshold_init={"sparsity": 0.5}, threshold_granularity=granularity)
    model = sparsify(tiny_bert(), config)
    save_native_state(model, tmp_path)
    expected = {
        name: layer.sparsifier.metrics()["mean_threshold"].item() for name, layer in sparse_layers(model).items()
    }
    finalize(model).save_pretrained(tmp_path)
    report = checkpoint_report(tmp_path)
    assert {row.name: row.threshold for row in report.layers} == pytest.approx(expected)
    assert report.sparsity == pytest.approx(sparsity(model)) and report.inference_fraction is None


def test_a_run_whose_beginning_is_not_recorded(tmp_path):
    save_file({"a.weight": torch.eye(4)}, tmp_path / "model.safetensors")
    moment = Moment(5, 1.0, None, (0.5,), (0.0,), (0.3,))
    Trajectory(9, ["a"], {"a": LayerCost(8, 16)}, [moment]).save(tmp_path)
    report = checkpoint_report(tmp_path)
    assert (report.inference_fraction, report.training_fraction) == (0.25, None)
    assert "theoretical FLOPs of training: the trajectory does not begin at step 0" in str(report)


def test_costs_of_nothing(tmp_path):
    save_file({"a.weight": torch.eye(4)}, tmp_path / "model.safetensors")
    Trajectory(9, ["a"], {"a": LayerCost(0, 16)}, [Moment(0, 0.0, None, (0.5,), (0.0,), None)]).save(tmp_path)
    report = checkpoint_report(tmp_path)
    assert (report.inference_fraction, report.training_fraction, report.training_unknown) == (None, None, None)
    assert report.layers[0].mac_share is None and "FLOPs" not in str(report)


def test_a_trajectory_without_moments(directory, tmp_path):
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    Trajectory(10, list(FFN)).save(tmp_path)
    report = checkpoint_report(tmp_path)
    assert [(row.name, row.threshold) for row in report.layers] == [(FFN[0], None), (FFN[1], None)]


# ---- Models of strangers ----


def test_pruned_with_torch(tmp_path):
    model = tiny_bert()
    layers = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "encoder" in name}
    for module in layers.values():
        prune.l1_unstructured(module, "weight", amount=0.75)
    model.save_pretrained(tmp_path / "masked")
    for module in layers.values():
        prune.remove(module, "weight")
    model.save_pretrained(tmp_path / "removed")
    report = checkpoint_report(tmp_path / "removed")
    assert [row.name for row in report.layers] == sorted(layers) and {row.sparsity for row in report.layers} == {0.75}
    assert report.dense["classifier.weight"] == "no zeros"
    assert "0.50% zeros" == report.dense["bert.embeddings.word_embeddings.weight"]  # the padding row of 200

    masked = checkpoint_report(tmp_path / "masked")
    assert not masked.layers
    reason = masked.dense["bert.encoder.layer.0.attention.self.query.weight_mask"]
    assert reason == "masked by torch.nn.utils.prune: call prune.remove before saving"


def test_experts(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = MixtralForCausalLM(MixtralConfig(vocab_size=20, num_hidden_layers=1, num_local_experts=2, **sizes))
    stacked = model.model.layers[0].mlp.experts
    for parameter in stacked.parameters():
        parameter.data[:, ::2] = 0
    model.save_pretrained(tmp_path / "hub")
    names = {row.name: row.sparsity for row in checkpoint_report(tmp_path / "hub").layers}
    assert len(names) == 6 and set(names.values()) == {0.5} and all("experts" in name for name in names)
    save_file(dict(model.model.layers[0].mlp.named_parameters()), tmp_path / "stacked.safetensors")
    report = checkpoint_report(tmp_path / "stacked.safetensors")
    assert not report.layers or all(len(row.shape) == 3 for row in report.layers)


def test_stacked_experts(tmp_path):
    tensors = {"mlp.experts.gate_up_proj": torch.zeros(2, 3, 4), "mlp.experts.gate_up_proj_bias": torch.zeros(2, 3)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert [row.name for row in checkpoint_report(tmp_path).layers] == ["mlp.experts.gate_up_proj"]


def test_a_dense_model(tmp_path):
    save_file({"weight": torch.ones(2, 2), "empty.weight": torch.zeros(0, 2)}, tmp_path / "model.safetensors")
    report = checkpoint_report(tmp_path)
    assert report.layers == [] and report.sparsity == 0.0
    assert report.dense == {"empty.weight": "no zeros", "weight": "no zeros"}
    assert "sparsity 0.00% of 0 weights in 0 sparse layers" in str(report)


def test_a_single_weight(tmp_path):
    """What pack(nn.Linear(...)) makes."""
    save_file({"weight": torch.eye(4)}, tmp_path / "model.safetensors")
    assert "(the model itself)" in str(checkpoint_report(tmp_path))


# ---- As text ----


def test_text(directory):
    text = str(checkpoint_report(directory))
    assert "sparsity 50.00% of 768 weights in 2 sparse layers" in text
    assert "│ model.encoder.layers.0.fc1 │ 24 x 16 │   F32 │   50.00% │       0.3 │        30.00% │" in text
    assert "biases" in text or "no weight matrix (bias, norm, ...)" in text
    assert "theoretical FLOPs of inference: 80.00% of the dense model's" in text
    assert "theoretical FLOPs of training: 95.60% of the dense model's" in text


def test_dict_and_csv(directory):
    report = checkpoint_report(directory)
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert values["source"] == str(directory) and values["inference_fraction"] == pytest.approx(0.8)
    assert values["layers"][0] == {
        "name": FFN[0], "shape": [24, 16], "sparsity": 0.5, "threshold": 0.3, "dtype": "F32", "mac_share": 0.3,
    }  # fmt: skip
    header, first, _ = report.to_csv().splitlines()
    assert header == "name,shape,sparsity,threshold,dtype,mac_share"
    assert first == f"{FFN[0]},24x16,0.5,0.3,F32,0.3"


def test_blocks_are_in_order_and_dense_ones_together(tmp_path):
    tensors = {f"h.{i}.w.weight": torch.ones(2, 2) for i in range(11)}
    tensors |= {f"h.{i}.s.weight": torch.eye(4) for i in range(11)}
    save_file(tensors, tmp_path / "model.safetensors")
    report = checkpoint_report(tmp_path)
    assert [row.name for row in report.layers] == [f"h.{i}.s" for i in range(11)]
    assert "h.*.w.weight (11)" in str(report)


def test_names_that_would_write_to_the_terminal(tmp_path):
    name = "\x1b[31m[red]:smile:\nnext.weight"
    save_file({name: torch.eye(4), "[/x]": torch.ones(1)}, tmp_path / "model.safetensors")
    text = str(checkpoint_report(tmp_path))
    assert r"\x1b[31m[red]:smile:\nnext" in text and "\x1b" not in text


# ---- Memory ----


def write_holes(path, shape, dtype="F32", size=4):
    """A file whose one tensor is zeros that take no room on disk, but all of it when they are read."""
    count = size
    for length in shape:
        count *= length
    header = json.dumps({"big.weight": {"dtype": dtype, "shape": shape, "data_offsets": [0, count]}}).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + count)


def test_memory_is_bounded(tmp_path):
    """One tensor of 400 MB, plain, and one packed: less than 40 MB more than before."""
    write_holes(tmp_path / "big.safetensors", [1, 100_000_000])
    program = """
import resource, sys
from hf_autosparse.reports.diff import checkpoint_diff
from hf_autosparse.reports.checkpoint import checkpoint_report
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
path = sys.argv[1]
before = peak()
report = checkpoint_report(path)
assert report.zeros == report.values == 100_000_000
reported = peak() - before
assert not checkpoint_diff(path, path).different
print(reported, peak() - before)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "big.safetensors")]
    grown = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert all(int(megabytes) < 40 for megabytes in grown), grown


def test_a_file_larger_than_memory_opens(tmp_path):
    write_holes(tmp_path / "huge.safetensors", [2**20, 2**18], "U8", 1)  # 256 GiB
    with PackedFile(tmp_path / "huge.safetensors") as file:
        assert file.entries["big.weight"].shape == (2**20, 2**18)
        assert next(file.pieces("big.weight")).shape == (PIECE,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_are_the_tensor(dtype, tmp_path):
    weight = torch.randn(3, 400_001, generator=torch.Generator().manual_seed(0)).to(dtype)  # more than one piece
    weight[weight.abs() < 1] = 0
    parts = dict(zip(("w.weight_bitmask", "w.weight_values", "w.weight_shape"), encode(weight), strict=True))
    mark = {"autosparse_format": "bitmask", "autosparse_format_version": "1"}
    save_file(parts | {"number": torch.tensor(2.0)}, tmp_path / "packed.safetensors", mark)
    save_file({"before": torch.ones(3), "w.weight": weight}, tmp_path / "plain.safetensors")
    for name in ("packed", "plain"):
        with PackedFile(tmp_path / f"{name}.safetensors") as file:
            pieces = list(file.pieces("w.weight"))
            assert [len(piece) for piece in pieces] == [PIECE, 3 * 400_001 - PIECE]
            assert torch.equal(torch.cat(pieces), weight.flatten())
            if name == "packed":
                assert [piece.tolist() for piece in file.pieces("number")] == [[2.0]]


def test_pieces_of_a_weight_that_is_pruned_whole(tmp_path):
    parts = dict(zip(("w.weight_bitmask", "w.weight_values", "w.weight_shape"), encode(torch.zeros(2, 3)), strict=True))
    mark = {"autosparse_format": "bitmask", "autosparse_format_version": "1"}
    save_file(parts, tmp_path / "model.safetensors", mark)
    with PackedFile(tmp_path / "model.safetensors") as file:
        assert [piece.tolist() for piece in file.pieces("w.weight")] == [[0.0] * 6]


# ---- Hostile ----


@pytest.mark.parametrize(
    "change, message",
    [
        ("mask", "marks 3 weights, but there are 4 values"),
        ("mask more", "marks 5 weights, but there are 4 values"),
        ("beyond", "beyond the 10 there are"),
    ],
)
def test_pieces_of_a_dishonest_mask(change, message, tmp_path):
    bitmask, values, shape = encode(torch.tensor([[0.0, 1.0, 0.0, -2.0, 0.0], [3.0, 0.0, 0.0, 0.0, 4.0]]))
    match change:
        case "mask":
            bitmask[0] -= 2
        case "mask more":
            bitmask[0] += 1
        case "beyond":
            bitmask[1] = 0b100
    mark = {"autosparse_format": "bitmask", "autosparse_format_version": "1"}
    tensors = {"w.weight_bitmask": bitmask, "w.weight_values": values, "w.weight_shape": shape}
    save_file(tensors, tmp_path / "model.safetensors", mark)
    with PackedFile(tmp_path / "model.safetensors") as file, pytest.raises(PackedFormatError, match=message):
        list(file.pieces("w.weight"))


def test_a_file_cut_off_while_it_is_read(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"w.weight": torch.ones(100, 100)}, path)
    with PackedFile(path) as file:
        with open(path, "rb+") as stream:
            stream.truncate(1000)
        with pytest.raises(PackedFormatError, match="tensor w.weight: the file was changed after it had been opened"):
            list(file.pieces("w.weight"))


def test_a_file_replaced_while_it_is_read(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"w.weight": torch.ones(2, 2)}, path)
    with PackedFile(path) as file:
        path.write_bytes(b"something else")
        with pytest.raises(PackedFormatError, match="was changed after it had been opened"):
            list(file.pieces("w.weight"))


def test_a_dtype_that_is_not_read(tmp_path):
    write_holes(tmp_path / "model.safetensors", [4, 4], "F8_E8M0", 1)
    assert checkpoint_report(tmp_path).dense == {"big.weight": "zeros are not counted in dtype F8_E8M0"}
    with PackedFile(tmp_path / "model.safetensors") as file, pytest.raises(PackedFormatError, match="dtype F8_E8M0"):
        list(file.pieces("big.weight"))


def test_a_tensor_in_two_shards(tmp_path):
    for name in ("a", "b"):
        save_file({"w.weight": torch.eye(2)}, tmp_path / f"{name}.safetensors")
    index = {"weight_map": {"w.weight": "a.safetensors", "v.weight": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(PackedFormatError, match="b.safetensors, tensor w.weight: is in a.safetensors as well"):
        checkpoint_report(tmp_path)


def trajectory(**changes):
    moment = {"step": 1, "epoch": 1, "alpha": 0, "sparsity": [0.5], "backward_sparsity": [0], "threshold": [0.1]}
    moment |= {key: changes.pop(key) for key in list(changes) if key in moment}
    macs = {"macs": changes.pop("macs", 1), "weights": 1}
    return json.dumps(
        {"format_version": 1, "max_steps": 1, "sparse": ["a"], "layers": {"a": macs}, "moments": [moment]} | changes
    )


DAMAGED = [
    "{", "[]", "3", "null", "[" * 100_000, '{"format_version": 2}', '{"format_version": 1}',
    trajectory(macs="x"), trajectory(macs=float("nan")), trajectory(macs=-1), trajectory(macs=1e999),
    trajectory(macs=10**400), trajectory(max_steps=10**400), trajectory(step=-1), trajectory(steps_done=[]),
    trajectory(max_steps=float("inf")), trajectory(sparse=3), trajectory(moments=[[]]), trajectory(layers=[]),
    trajectory(sparsity=[float("nan")]), trajectory(sparsity=[2]), trajectory(threshold=[float("inf")]),
]  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_trajectory(content, tmp_path):
    save_file({"a.weight": torch.eye(4)}, tmp_path / "model.safetensors")
    (tmp_path / "autosparse_trajectory.json").write_text(content)
    with pytest.raises(ValueError, match="autosparse_trajectory.json"):
        checkpoint_report(tmp_path)


def test_a_threshold_that_diverged(tmp_path):
    save_file({"a.weight": torch.eye(4)}, tmp_path / "model.safetensors")
    state = {"a.weight": torch.eye(4), "a.sparsifier.threshold": torch.tensor([float("nan")])}
    save_file(state, tmp_path / "autosparse_state.safetensors")
    assert [row.threshold for row in checkpoint_report(tmp_path).layers] == [None]


def test_a_damaged_native_state(tmp_path):
    save_file({"a.weight": torch.eye(4)}, tmp_path / "model.safetensors")
    (tmp_path / "autosparse_state.safetensors").write_bytes(b"nothing")
    with pytest.raises(PackedFormatError, match="autosparse_state.safetensors is not a whole"):
        checkpoint_report(tmp_path)


# ---- Nothing there ----


def test_no_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds neither"):
        checkpoint_report(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "adapter.safetensors")
    with pytest.raises(FileNotFoundError, match="Or name one of its files: adapter.safetensors"):
        checkpoint_report(tmp_path)


def test_another_kind_of_file(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(PackedFormatError, match="expected a .safetensors file or the directory"):
        checkpoint_report(tmp_path / "pytorch_model.bin")


@pytest.mark.parametrize("path", ["./nothing", "nothing/at/all", "gone.safetensors", "/nothing"])
def test_no_such_path(path):
    with pytest.raises(FileNotFoundError, match=f"{path} does not exist"):
        checkpoint_report(path)
