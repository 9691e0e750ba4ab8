import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import MarianConfig, MarianMTModel, set_seed

import hf_autosparse.inference.screen as decoding
from hf_autosparse import kernels, screen_output
from hf_autosparse.inference.screen import ScreenedOutput, _Screen
from tiny import tiny_translator

pytestmark = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="this build of torch has no fbgemm"
)


class Generator(nn.Module):
    """As much of a model as `screen_output` looks at."""

    def __init__(self, weight, bias=None):
        super().__init__()
        self.head = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        self.head.weight.data = weight
        if bias is not None:
            self.head.bias.data = bias
        self.requires_grad_(False)

    def get_output_embeddings(self):
        return self.head


def tiny_marian() -> MarianMTModel:
    set_seed(0)
    size = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    size |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 32}
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "forced_eos_token_id": None}
    return MarianMTModel(MarianConfig(vocab_size=500, init_std=0.3, **size, **tokens)).eval()


@pytest.fixture(autouse=True, params=["C", "torch"])
def route(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(decoding, "library", lambda: None)
    elif kernels.library() is None:
        pytest.skip(f"needs the C kernels, and this machine has none: {kernels.status()}")


@pytest.fixture
def counted(monkeypatch):
    """How many logits are computed again, call by call."""
    again = []
    correct = ScreenedOutput._correct

    def counting(self, *args):
        again.append(correct(self, *args))
        return again[-1]

    monkeypatch.setattr(ScreenedOutput, "_correct", counting)
    return again


def test_what_int8_loses_of_a_row_by_hand():
    screen = _Screen(torch.tensor([[127.0, 64.4, -3.0], [0.0, 0.0, 0.0]]), None)
    # codes 127, 64 and -3 of scale 1; lost 0, 0.4 and 0
    assert screen.sizes[0].tolist() == pytest.approx([(127**2 + 64**2 + 3**2) ** 0.5, 0])
    assert screen.sizes[1].tolist() == pytest.approx([0.4, 0], abs=1e-5)


@pytest.mark.parametrize("sequences", [1, 3, 16])
@pytest.mark.parametrize("bias", [False, True])
def test_the_largest_logits_are_float32s_and_no_other_is_larger(sequences, bias, counted):
    torch.manual_seed(0)
    weight = torch.randn(3001, 67) * torch.rand(3001, 1).mul(3).exp()  # rows of very different size
    model = screen_output(Generator(weight, torch.randn(3001) * 5 if bias else None), top=5)
    x = torch.randn(sequences, 1, 67)
    expected = F.linear(x, weight, model.head.bias)
    logits = model.head(x)
    assert torch.equal(logits.topk(5).indices, expected.topk(5).indices)
    torch.testing.assert_close(logits.topk(5).values, expected.topk(5).values)
    torch.testing.assert_close(logits, expected, atol=0.02 * expected.abs().max().item(), rtol=0)
    assert 0 < sum(counted) < 0.1 * logits.numel()


def test_rows_that_int8_cannot_tell_apart_are_told_apart():
    torch.manual_seed(0)
    weight = torch.randn(2000, 64)
    weight[100:150] = 3 * weight[100] + 0.01 * torch.randn(50, 64)  # less than a step of int8
    model = screen_output(Generator(weight), top=1)
    x = weight[100].view(1, 1, 64) + 0.1 * torch.randn(8, 1, 64)
    expected = F.linear(x.double(), weight.double()).argmax(-1)
    assert torch.equal(model.head(x).argmax(-1), expected)
    assert not torch.equal(
        torch.ops.quantized.linear_dynamic(x, model.head._screen().packed, True).argmax(-1), expected
    )


def test_where_every_token_is_near_the_top_float32_computes_them_all(counted):
    torch.manual_seed(0)
    weight = torch.randn(1, 64) + 1e-4 * torch.randn(2000, 64)
    x = torch.randn(2, 1, 64)
    assert torch.equal(screen_output(Generator(weight)).head(x), F.linear(x, weight))
    assert counted == [None]


def test_the_bound_holds_for_every_logit():
    torch.manual_seed(0)
    for draw in (
        torch.randn,
        torch.rand,
        lambda *size: torch.randn(*size) ** 3,
        lambda *size: torch.randn(*size).sign(),
    ):
        weight, x = draw(500, 40), draw(7, 40)
        screen = _Screen(weight, None)
        logits = torch.ops.quantized.linear_dynamic(x, screen.packed, True).double()
        scale, zero = torch._choose_qparams_per_tensor(x, True)
        lost = (torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 127) - x).norm(dim=1, keepdim=True)
        size = x.norm(dim=1, keepdim=True)
        bound = torch.cat([lost + decoding._ROUNDING * size, size], 1) @ screen.sizes
        assert ((x.double() @ weight.double().T - logits).abs() <= bound).all()


@pytest.mark.parametrize("beams", [1, 2])
def test_generate_chooses_the_same_tokens(beams, counted):
    model = tiny_marian()
    model.final_logits_bias.normal_(std=2.0)  # added after the output layer
    ids = torch.randint(2, 500, (4, 7))
    settings = {"max_new_tokens": 12, "min_new_tokens": 4, "do_sample": False, "num_beams": beams}
    expected = model.generate(ids, **settings)
    assert torch.equal(screen_output(model).generate(ids, **settings), expected)
    assert len(counted) >= 11 and all(counted) and len(set(expected.flatten().tolist())) > 5


def test_what_is_no_step_of_generation_computes_as_before():
    torch.manual_seed(0)
    weight = torch.randn(300, 16)
    head = screen_output(Generator(weight)).head
    for shape in ((2, 5, 16), (5, 16), (65, 1, 16), (0, 1, 16)):
        x = torch.randn(shape)
        assert torch.equal(head(x), F.linear(x, weight))
    x = torch.randn(1, 1, 16, requires_grad=True)
    assert torch.equal(head(x), F.linear(x, weight))
    head(x).sum().backward()
    assert x.grad is not None
    with pytest.raises(RuntimeError, match="1x15 and 16x300"):
        head(torch.randn(1, 1, 15))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_give_what_float32_gives(value):
    torch.manual_seed(0)
    weight, x = torch.randn(300, 16), torch.randn(2, 1, 16)
    x[0, 0, 3] = value
    torch.testing.assert_close(screen_output(Generator(weight)).head(x), F.linear(x, weight), equal_nan=True)
    weight[7, 3] = value
    x = torch.randn(2, 1, 16)
    torch.testing.assert_close(screen_output(Generator(weight)).head(x), F.linear(x, weight), equal_nan=True)


def test_a_weight_or_bias_that_changes_is_followed():
    torch.manual_seed(0)
    model = screen_output(Generator(torch.randn(300, 16), torch.randn(300)))
    x = torch.randn(1, 1, 16)
    model.head(x)
    model.head.weight.neg_()
    assert model.head(x).argmax() == F.linear(x, model.head.weight, model.head.bias).argmax()
    model.head.bias[5] += 1000
    assert model.head(x).argmax() == 5


@pytest.mark.parametrize("build", [tiny_translator, tiny_marian])  # without an offset, with one
def test_copies_pickles_and_saving(build):
    model = build().eval()
    names = list(model.state_dict())
    ids = torch.randint(4, 60, (2, 5))
    expected = model.generate(ids, max_new_tokens=5, do_sample=False)
    screen_output(model)
    assert list(model.state_dict()) == names
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        head = twin.get_output_embeddings()
        assert type(head) is ScreenedOutput and head._offset is getattr(twin, "final_logits_bias", None)
        assert torch.equal(twin.generate(ids, max_new_tokens=5, do_sample=False), expected)
    screen_output(model, top=0)
    head = model.get_output_embeddings()
    assert type(head) is nn.Linear and not {"top", "_offset"} & vars(head).keys() and not model._forward_pre_hooks


def test_the_layer_holds_nothing_of_the_model_but_its_offset():
    model = screen_output(tiny_marian())
    head, layer = model.lm_head, nn.Linear(16, 500, bias=False)
    sizes = []
    for module in (head, layer):
        buffer = io.BytesIO()
        torch.save(module, buffer)
        sizes.append(len(buffer.getvalue()))
    assert sizes[0] - sizes[1] < 4 * 500 + 1500  # the offset and its name
    assert len(pickle.dumps(head)) < 1.2 * len(pickle.dumps(layer))
    alone = copy.deepcopy(head)
    assert not [value for value in vars(alone).values() if isinstance(value, nn.Module)]
    assert torch.equal(alone._offset, model.final_logits_bias) and alone._offset is not model.final_logits_bias


def test_another_offset_is_followed():
    model = screen_output(tiny_marian())
    assert len(screen_output(model)._forward_pre_hooks) == 1
    ids = torch.randint(2, 500, (4, 7))
    for twin in (model, copy.deepcopy(model)):
        twin.register_buffer("final_logits_bias", 5 * torch.randn(1, 500))  # as resizing the vocabulary does
        screened = twin.generate(ids, max_new_tokens=8, do_sample=False)
        assert twin.lm_head._offset is twin.final_logits_bias
        expected = screen_output(twin, top=0).generate(ids, max_new_tokens=8, do_sample=False)
        assert torch.equal(screened, expected)


def test_treating_it_again_changes_top_alone():
    model = Generator(torch.randn(50, 8))
    assert screen_output(screen_output(model, top=2), top=7).head.top == 7


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"top = -1: allowed are 0 \(undo\) to 50"):
        screen_output(Generator(torch.randn(50, 8)), top=-1)
    with pytest.raises(ValueError, match="top = 51"):
        screen_output(Generator(torch.randn(50, 8)), top=51)
    with pytest.raises(ValueError, match="top = True"):
        screen_output(Generator(torch.randn(50, 8)), top=True)
    with pytest.raises(ValueError, match="Linear has no output layer over tokens"):
        screen_output(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="torch.float64 on cpu: use float32 on the CPU"):
        screen_output(Generator(torch.randn(50, 8)).double())
    other = Generator(torch.randn(50, 8))
    other.head.__class__ = type("Special", (nn.Linear,), {})
    with pytest.raises(ValueError, match="the output layer is a Special"):
        screen_output(other)


def test_an_offset_of_another_size_is_refused():
    model = Generator(torch.randn(300, 16))
    model.register_buffer("final_logits_bias", torch.zeros(1, 299))
    with pytest.raises(RuntimeError, match="size of tensor"):
        screen_output(model).head(torch.randn(2, 1, 16))


def test_without_the_int8_product_it_says_so(monkeypatch):
    monkeypatch.setattr(decoding, "_engines", lambda: ["qnnpack"])
    with pytest.raises(RuntimeError, match="no fbgemm"):
        screen_output(Generator(torch.randn(50, 8)))
