"""The packed format: golden bytes, round trips, what from_pretrained makes of it, and hostile files."""

import json
import os
import re
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
)

from fuzz_packed import torch_shape
from hf_autosparse import AutoSparseConfig, FixedMaskConfig, PackedFormatError, finalize, pack, sparsify, unpack
from hf_autosparse.reports.diff import checkpoint_diff
from hf_autosparse.serialization.bitmask_format import PackedFile, decode, encode, metadata, stored_keys
from hf_autosparse.serialization.digest import Digest, digest
from paths import ROOT
from sealed import save_sealed
from tiny import tiny_trainer, tiny_translator

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def sparse_translator(sparsity=0.7):
    return sparsify(tiny_translator(), AutoSparseConfig(threshold_init={"sparsity": sparsity}))


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("packed") / "model"
    pack(sparse_translator(), directory)
    return directory


@pytest.fixture
def copy(packed, tmp_path):
    """A copy of the packed model to damage."""
    directory = tmp_path / "copy"
    directory.mkdir()
    for path in packed.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    return directory


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    weight = torch.tensor([[0.0, 1.0, 0.0, -2.0, 0.0], [3.0, 0.0, 0.0, 0.0, 4.0]])
    parts = zip(stored_keys("a.weight"), encode(weight), strict=True)
    save_sealed({**dict(parts), "a.bias": torch.ones(2)}, path)
    return path


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]


# ---- One weight ----


def test_golden_bytes():
    weight = torch.tensor([[0.0, 1.0, 0.0, -2.0, 0.0], [3.0, -0.0, 0.0, 0.0, 4.0]])
    bitmask, values, shape = encode(weight)
    assert bitmask.tolist() == [0b00101010, 0b10]  # elements 1, 3, 5 of the first eight; 9 of the rest
    assert values.tolist() == [1, -2, 3, 4] and shape.tolist() == [2, 5]
    assert torch.equal(decode(bitmask, values, (2, 5)), weight)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.floats(0, 1),
    st.sampled_from(DTYPES),
    st.integers(0, 2**32),
)
def test_round_trip(shape, sparsity, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator).to(dtype)
    weight[torch.rand(shape, generator=generator) < sparsity] = 0
    bitmask, values, sizes = encode(weight)
    assert len(values) == weight.count_nonzero() and values.dtype == dtype
    assert torch.equal(decode(bitmask, values, tuple(sizes.tolist())), weight)


@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip_across_chunks(dtype):
    weight = torch.randn(3, 65_537, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[weight.abs() < 1] = 0
    bitmask, values, _ = encode(weight.T)  # not contiguous
    assert torch.equal(decode(bitmask, values, (65_537, 3)), weight.T)


@pytest.mark.parametrize(
    "weight", [torch.zeros(2, dtype=torch.float64), torch.tensor(1.0), torch.zeros(0, 3), torch.zeros([1] * 9)]
)
def test_encode_refuses(weight):
    with pytest.raises(ValueError, match="cannot pack a weight of dtype"):
        encode(weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_encode_refuses_non_finite(value):
    with pytest.raises(ValueError, match="not finite"):
        encode(torch.tensor([1.0, value]))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 300_000), st.integers(0, 300_000), st.integers(0, 2**32))
def test_digest_as_documented_in_any_pieces(size, cut, seed):
    text = (ROOT / "docs" / "packed_format.md").read_text()
    (code,) = [code for code in re.findall("```python\n(.*?)```", text, re.DOTALL) if "def digest" in code]
    documented = {}
    exec(code, documented)
    data = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    pieces = Digest("U8", (size,))
    for piece in (data[:cut], data[cut:]):
        pieces.update(piece)
    assert pieces.hexdigest() == documented["digest"]("U8", (size,), data.tobytes())


def test_golden_digests():
    assert digest(torch.tensor([1.0, -2.0]), "F32", (2,)) == "ffc4a947"
    assert digest(torch.zeros(0), "F32", (0,)) == "5b285d91"
    assert digest(torch.tensor([[1.0], [-2.0]]), "F32", (2, 1)) == "66435dd0"


def test_reads_with_numpy_alone_as_documented(packed):
    stored = load_numpy(packed / "model.safetensors")
    name = "model.encoder.layers.0.fc1.weight"
    shape = stored[name + "_shape"]
    mask = np.unpackbits(stored[name], count=shape.prod(), bitorder="little").astype(bool)
    weight = np.zeros(shape.prod(), stored[name + "_values"].dtype)
    weight[mask] = stored[name + "_values"]
    expected = finalize(sparse_translator()).state_dict()[name].numpy()
    assert np.array_equal(weight.reshape(shape), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.98])
def test_size_is_within_two_percent_of_ideal(dtype, sparsity, tmp_path):
    weight = torch.randn(1024, 1024).to(dtype)
    weight.view(-1)[torch.randperm(weight.numel())[: int(sparsity * weight.numel())]] = 0
    module = nn.Linear(1024, 1024, bias=False, dtype=dtype)
    module.weight.data = weight
    pack(module, tmp_path / "packed")
    bits = weight.element_size() * 8
    density = weight.count_nonzero().item() / weight.numel()
    ideal = (density + 1 / bits) * weight.numel() * weight.element_size()
    assert (tmp_path / "packed" / "model.safetensors").stat().st_size <= 1.02 * ideal


# ---- from_pretrained ----


def test_loads_in_one_line(packed):
    model = AutoModelForSeq2SeqLM.from_pretrained(packed)
    assert_same(model.state_dict(), finalize(sparse_translator()).state_dict())
    assert (packed / "model.safetensors").stat().st_size < 27_000


@pytest.mark.parametrize("order", ["hf_autosparse, transformers", "transformers.modeling_utils, hf_autosparse"])
def test_loads_in_a_fresh_process_whatever_is_imported_first(packed, order):
    program = f"""
import {order}
from transformers import AutoModelForSeq2SeqLM
model = AutoModelForSeq2SeqLM.from_pretrained({str(packed)!r})
zeros = (model.model.encoder.layers[0].fc1.weight == 0).float().mean().item()
assert 0.65 < zeros < 0.75, zeros
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loads_as_another_dtype(packed, dtype):
    model = AutoModelForSeq2SeqLM.from_pretrained(packed, dtype=dtype)
    assert_same(model.state_dict(), finalize(sparse_translator()).to(dtype).state_dict())


def test_loads_with_a_device_map(packed):
    model = AutoModelForSeq2SeqLM.from_pretrained(packed, device_map={"": "cpu"})
    assert_same(model.state_dict(), finalize(sparse_translator()).state_dict())


def test_loads_into_the_base_class(packed):
    model = AutoModel.from_pretrained(packed)
    expected = finalize(sparse_translator()).model.state_dict()
    assert_same(model.state_dict(), expected)


def test_sharded(tmp_path):
    model = finalize(sparse_translator())
    model.save_pretrained(tmp_path / "plain", max_shard_size="8KB")
    assert len(list((tmp_path / "plain").glob("*.safetensors"))) > 2
    pack(tmp_path / "plain", tmp_path / "packed")
    assert_same(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "packed").state_dict(), model.state_dict())
    unpack(tmp_path / "packed", tmp_path / "again")
    assert_same(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "again").state_dict(), model.state_dict())


def test_the_loaded_model_is_a_plain_one(packed, tmp_path):
    model = AutoModelForSeq2SeqLM.from_pretrained(packed)
    model.save_pretrained(tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    assert_same(load_file(tmp_path / "plain" / "model.safetensors"), unpacked_state(packed, tmp_path))
    assert model.half().dtype == torch.float16
    pack(model.float(), tmp_path / "again")


def unpacked_state(packed, tmp_path):
    unpack(packed, tmp_path / "unpacked")
    return load_file(tmp_path / "unpacked" / "model.safetensors")


def test_unpack_restores_the_file(tmp_path):
    finalize(sparse_translator()).save_pretrained(tmp_path / "plain")
    pack(tmp_path / "plain", tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "again")
    for path in (tmp_path / "plain").iterdir():
        twin = tmp_path / "again" / path.name
        if path.suffix == ".json":
            assert json.loads(twin.read_text()) == json.loads(path.read_text())
        else:
            assert_same(load_file(twin), load_file(path))


def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, tie_word_embeddings=False, **sizes))


def resnet():
    torch.manual_seed(0)
    return ResNetForImageClassification(ResNetConfig(embedding_size=16, hidden_sizes=[32, 64], depths=[1, 1]))


@pytest.mark.parametrize(
    "make, auto", [(llama, AutoModelForCausalLM), (resnet, AutoModelForImageClassification)], ids=["llama", "resnet"]
)
def test_other_architectures(make, auto, tmp_path):
    model = finalize(sparsify(make(), AutoSparseConfig(threshold_init={"sparsity": 0.6})))
    pack(model, tmp_path / "packed")
    assert_same(auto.from_pretrained(tmp_path / "packed").state_dict(), model.state_dict())


def test_a_fully_pruned_weight(tmp_path):
    model = tiny_translator()
    model.model.encoder.layers[0].fc1.weight.data.zero_()
    pack(model, tmp_path / "packed")
    assert_same(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "packed").state_dict(), model.state_dict())


@pytest.mark.filterwarnings("ignore")
def test_trains_on_with_its_zeros_kept(packed, tmp_path):
    model = AutoModelForSeq2SeqLM.from_pretrained(packed)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = tiny_trainer(tmp_path, model=model, config=FixedMaskConfig())
    trainer.train()
    trainer.save_model()
    after = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    for name, p in after.named_parameters():
        assert not torch.equal(p, before[name]), name
        if name.endswith(".weight") and p.dim() == 2 and "shared" not in name and "lm_head" not in name:
            assert (p[before[name] == 0] == 0).all(), name


# ---- What pack refuses ----


def test_nothing_is_overwritten(packed, tmp_path):
    (tmp_path / "there").mkdir()
    for name in "dcba":
        (tmp_path / "there" / name).touch()
    for action in (pack, unpack):
        with pytest.raises(FileExistsError, match="there exists and holds a, b, c and 1 more: nothing is overwritten"):
            action(packed, tmp_path / "there")
    for action in (pack, unpack):
        with pytest.raises(FileExistsError, match="a exists and is a file: nothing is overwritten"):
            action(packed, tmp_path / "there" / "a")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="link exists and is a link that leads nowhere"):
        unpack(packed, tmp_path / "link")


def test_an_empty_directory_is_filled(packed, tmp_path):
    (tmp_path / "empty").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "empty", target_is_directory=True)
    unpack(packed, tmp_path / "link")
    assert (tmp_path / "empty" / "model.safetensors").is_file() and (tmp_path / "link").is_symlink()
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o700
    (tmp_path / "next").mkdir()
    pack(tmp_path / "empty", tmp_path / "next")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "link", "next"]


def test_the_umask_of_the_process_is_left_alone(packed, tmp_path, monkeypatch):
    """Another thread's files would come out with other permissions meanwhile."""
    before = os.umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("os.umask was called"))
        unpack(packed, tmp_path / "plain")
        pack(tmp_path / "plain", tmp_path / "again")
        pack(sparse_translator(), tmp_path / "model")
    finally:
        monkeypatch.undo()
        os.umask(before)
    for name in ("plain", "again", "model"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o750


def test_pack_twice(packed, tmp_path):
    with pytest.raises(ValueError, match="is packed already"):
        pack(packed, tmp_path / "again")


def test_nothing_to_pack(tmp_path):
    with pytest.raises(ValueError, match="enough zeros"):
        pack(tiny_translator(), tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_no_model_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds neither"):
        pack(tmp_path, tmp_path / "packed")


def test_unpack_needs_a_packed_one(tmp_path):
    tiny_translator().save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="no weight is packed"):
        unpack(tmp_path / "plain", tmp_path / "out")


def test_a_kill_leaves_nothing_or_all(tmp_path):
    """Killed at many moments; whatever has the output's name is whole."""
    finalize(sparse_translator()).save_pretrained(tmp_path / "plain")
    program = (
        "import sys; from hf_autosparse.serialization.pack import pack\n"
        "print('ready', flush=True)\n"
        "for i in range(10_000): pack(sys.argv[1], f'{sys.argv[2]}/{i}')"
    )
    killed = 0
    for delay in (0.0, 0.003, 0.01, 0.02, 0.04, 0.08, 0.15):
        out = tmp_path / f"out{delay}"
        out.mkdir()
        command = [sys.executable, "-c", program, str(tmp_path / "plain"), str(out)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        time.sleep(delay)
        process.kill()
        process.wait()
        process.stdout.close()
        killed += any(path.name.startswith(".") for path in out.iterdir())
        for path in out.iterdir():
            if not path.name.startswith("."):
                AutoModelForSeq2SeqLM.from_pretrained(path)
    assert killed, "no kill came while something was being written"


# ---- Damaged files ----


def contents(path):
    with PackedFile(path) as file:
        return {name: file.dense(name) for name in file.entries}


@pytest.mark.parametrize("bit", [0, 5])
def test_every_damaged_byte_is_noticed(small_file, bit):
    """Refused, or without influence (as the value of "format" in the metadata)."""
    content, sound = small_file.read_bytes(), contents(small_file)
    payload = 8 + struct.unpack("<Q", content[:8])[0]
    mutant, unharmed = small_file.with_name("damaged.safetensors"), 0
    for position in range(len(content)):
        mutant.write_bytes(content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :])
        try:
            found = contents(mutant)
        except PackedFormatError as error:
            assert "damaged.safetensors" in str(error)
            continue
        assert_same(found, sound)
        assert position < payload
        unharmed += 1
    assert unharmed < 20


def test_a_plain_tensor_by_another_name(copy, tmp_path):
    """It used to load: the weight of that name stayed as it was initialised."""
    path = copy / "model.safetensors"
    name = b'"model.encoder.layer_norm.weight":'
    content = path.read_bytes()
    assert content.count(name) == 1
    path.write_bytes(content.replace(name, name.replace(b"norm", b"morm")))
    for action in (lambda: unpack(copy, tmp_path / "out"), lambda: AutoModelForSeq2SeqLM.from_pretrained(copy)):
        with pytest.raises(PackedFormatError, match="tensor model.encoder.layer_morm.weight: is in the file, but not"):
            action()


@pytest.mark.parametrize("name", ["model.encoder.layer_norm.weight", "model.encoder.layers.0.fc1.weight"])
def test_a_changed_payload(name, copy, tmp_path):
    """A plain tensor and a packed one whose values stay finite: nothing but the digest can tell."""
    path = copy / "model.safetensors"
    with safe_open(path, "pt") as file:
        tensors, stated = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()
    changed = name if name in tensors and tensors[name].is_floating_point() else name + "_values"
    tensors[changed].view(-1)[0] += 1
    save_file(tensors, path, stated)
    actions = [
        lambda: unpack(copy, tmp_path / "out"),
        lambda: AutoModelForSeq2SeqLM.from_pretrained(copy),
        lambda: checkpoint_diff(copy, copy),
    ]
    for action in actions:
        message = f"model.safetensors, tensor {re.escape(changed)}: its content has the digest"
        with pytest.raises(PackedFormatError, match=message):
            action()


@pytest.mark.parametrize(
    ("digests", "message"),
    [
        ("{", "autosparse_digests is not valid JSON"),
        ("[" * 100_000, "autosparse_digests is not valid JSON"),
        ("[]", "autosparse_digests is '\\[\\]', expected an object"),
        ('{"a": 3}', "expected an object with eight hexadecimal digits for each tensor"),
        ('{"a": "1234567"}', "expected an object with eight hexadecimal digits for each tensor"),
        ('{"a": "12345678", "a": "12345678"}', "autosparse_digests: the header has 'a' twice"),
        ("{}", "is in the file, but not listed in autosparse_digests"),
        ('{"a": "12345678"}', "tensor a: is not in the file, which lists it in autosparse_digests"),
    ],
)
def test_damaged_digests(digests, message, copy, tmp_path):
    path = copy / "model.safetensors"
    save_sealed(load_file(path), path, {"autosparse_digests": digests})
    with pytest.raises(PackedFormatError, match=message):
        unpack(copy, tmp_path / "out")


def test_a_packed_weight_has_two_dimensions(tmp_path):
    """The bitmask lies under the weight's name and must not have its shape."""
    parts = dict(zip(stored_keys("a.weight"), encode(torch.ones(1)), strict=True))
    save_sealed(parts, tmp_path / "model.safetensors")
    with pytest.raises(PackedFormatError, match=r"tensor a.weight_shape: shape \(1,\), expected 2 to 8 sizes"):
        PackedFile(tmp_path / "model.safetensors")


# ---- Hostile files ----

NAME = "model.encoder.layers.0.fc1.weight"


def damage(tensors, change):
    mask, values, shape = stored_keys(NAME)
    match change:
        case "value missing":
            tensors[values] = tensors[values][:-1].clone()
        case "value too many":
            tensors[values] = torch.cat([tensors[values], torch.ones(1)])
        case "bitmask short":
            tensors[mask] = tensors[mask][:-1].clone()
        case "bitmask dtype":
            tensors[mask] = tensors[mask].to(torch.int8)
        case "values dtype":
            tensors[values] = tensors[values].double()
        case "shape dtype":
            tensors[shape] = tensors[shape].int()
        case "shape wrong":
            tensors[shape] = tensors[shape] + 1
        case "shape swapped":
            tensors[shape] = tensors[shape].flip(0).contiguous()
        case "shape negative":
            tensors[shape] = -tensors[shape]
        case "shape overflows":
            tensors[shape] = torch.tensor([2**62, 2**62])
        case "shape wraps around":
            tensors[shape] = torch.tensor([2**32, 2**32])
        case "shape zero":
            tensors[shape] = torch.tensor([0, 2**40])
        case "shape empty":
            tensors[shape] = torch.zeros(0, dtype=torch.int64)
        case "shape scalar":
            tensors[shape] = torch.tensor(384)
        case "shape long":
            tensors[shape] = torch.ones(1000, dtype=torch.int64)
        case "shape gone":
            del tensors[shape]
        case "bitmask gone":
            del tensors[mask]
        case "plain as well":
            tensors[NAME] = torch.zeros(24, 16)
        case "nan":
            tensors[values][0] = float("nan")
        case "infinity":
            tensors[values][-1] = float("inf")
        case _:
            raise AssertionError(change)


CHANGES = [
    "value missing", "value too many", "bitmask short", "bitmask dtype", "values dtype", "shape dtype", "shape wrong",
    "shape swapped", "shape negative", "shape overflows", "shape wraps around", "shape zero", "shape empty",
    "shape scalar", "shape long", "shape gone", "bitmask gone", "plain as well", "nan", "infinity",
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_hostile_tensors(change, copy, tmp_path):
    path = copy / "model.safetensors"
    tensors = load_file(path)
    damage(tensors, change)
    save_sealed(tensors, path)
    if change != "shape swapped":  # sound in itself, but not what the model has
        with pytest.raises(PackedFormatError, match=NAME):
            unpack(copy, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with pytest.raises(PackedFormatError, match=NAME):
        AutoModelForSeq2SeqLM.from_pretrained(copy)


@pytest.mark.parametrize(
    "metadata",
    [
        {"autosparse_format_version": "3"},
        {"autosparse_format": "runs"},
        {"autosparse_format_version": "2.0"},
        {"autosparse_format_version": "1"},
        {"autosparse_extra": "x"},
    ],
)
def test_unknown_metadata(metadata, copy, tmp_path):
    path = copy / "model.safetensors"
    save_sealed(load_file(path), path, metadata)
    for action in (lambda: unpack(copy, tmp_path / "out"), lambda: AutoModel.from_pretrained(copy)):
        with pytest.raises(PackedFormatError, match="version|metadata"):
            action()


def test_unmarked_file_with_packed_names(copy):
    path = copy / "model.safetensors"
    save_file(load_file(path), path, {"format": "pt"})
    with pytest.raises(PackedFormatError, match="not marked"):
        AutoModel.from_pretrained(copy)


@pytest.mark.parametrize("change", [{"format_version": 3}, {"format": None}, {"bits": 4}])
def test_unknown_config(change, copy):
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"] |= change
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(PackedFormatError):
        AutoModel.from_pretrained(copy)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 0.5, 0.9, -1])
def test_truncated(kept, copy, tmp_path):
    path = copy / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(PackedFormatError, match="model.safetensors is not a whole safetensors file"):
        unpack(copy, tmp_path / "out")


@pytest.mark.parametrize("length", [25_000_001, 2**64 - 1])
def test_header_too_long(length, tmp_path):
    """Refused before it is read: in memory a header swells."""
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", length))
        file.truncate(8 + 25_000_001)
    with pytest.raises(PackedFormatError, match=f"header has {length} bytes, expected at most 25000000"):
        PackedFile(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "index",
    ["[]", "{", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../b.safetensors"}}'],
)
def test_hostile_index(index, copy, tmp_path):
    (copy / "model.safetensors").rename(copy / "b.safetensors")  # one file would take precedence over the index
    (copy / "model.safetensors.index.json").write_text(index)
    with pytest.raises(PackedFormatError, match="index.json"):
        unpack(copy, tmp_path / "out")


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_mutated_bytes_never_escape(small_file, data):
    content = bytearray(small_file.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    mutant = small_file.with_name("mutant.safetensors")
    mutant.write_bytes(content)
    read_all(mutant)


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_hostile_headers_never_escape(small_file, data):
    """A well-formed header that lies about dtypes, shapes, offsets and metadata."""
    content = small_file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    key = data.draw(st.sampled_from(sorted(header)))
    if key == "__metadata__":
        header[key] = data.draw(st.dictionaries(st.sampled_from(sorted(metadata({}))), st.text(max_size=5)))
    else:
        field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
        number = st.one_of(st.integers(0, 64), st.integers(0, 2**64), st.integers())
        header[key][field] = (
            data.draw(st.sampled_from(["F32", "F64", "BF16", "U8", "I8", "I64", "BOOL", "F8_E4M3", "F4", "X"]))
            if field == "dtype"
            else data.draw(st.lists(number, max_size=10))
        )
    text = json.dumps(header).encode()
    mutant = small_file.with_name("mutant.safetensors")
    mutant.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    read_all(mutant)


def read_all(path):
    """Read everything, or be told by our own error why not."""
    try:
        with PackedFile(path) as file:
            for name, entry in file.entries.items():
                tensor = file.dense(name)
                assert tuple(tensor.shape) == torch_shape(entry)
    except PackedFormatError:
        pass
