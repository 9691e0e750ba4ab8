"""Weights that are zero because nothing has trained them yet are no pruned weights; adapters are no layers to prune."""

import peft
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
    Trainer,
)

from hf_autosparse import (
    AutoSparseCallback,
    AutoSparseConfig,
    FixedMaskConfig,
    GMPConfig,
    SparseConfig,
    sparse_layers,
    sparsify,
    sparsity_report,
)
from hf_autosparse.methods import available_methods, config_class
from hf_autosparse.methods.settings import Budget
from pruned import pruned
from tiny import tiny_arguments, tiny_pairs, tiny_translator

# PEFT asks transformers for a property that this release of transformers renames.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

FRESH = "all its weights are 0: it is freshly initialised, not pruned"
ADAPTER = "belongs to an adapter (target_modules can name it)"


def config(method: str) -> SparseConfig:
    budget = {"target_sparsity": 0.5} if issubclass(config_class(method), Budget) else {}
    return SparseConfig.from_dict({"method": method, "first_last": "none"} | budget)


@pytest.mark.parametrize("method", available_methods())
def test_an_all_zero_layer_stays_dense(method, caplog):
    model = nn.Sequential(nn.Linear(8, 8), nn.Conv2d(4, 8, 1))
    nn.init.zeros_(model[1].weight)
    sparsify(model, config(method))
    assert list(sparse_layers(model)) == ["0"]
    assert sparsity_report(model).dense == {"1": FRESH}
    assert f"left dense: 1: {FRESH}" in caplog.text


def test_a_model_with_zero_initialised_layers_takes_the_default_configuration():
    """RT-DETR's sampling offsets, which its own initialisation sets to 0."""
    backbone = RTDetrResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], layer_type="basic")
    model = RTDetrForObjectDetection(
        RTDetrConfig(
            backbone_config=backbone,
            d_model=16,
            encoder_hidden_dim=16,
            encoder_in_channels=[8, 8, 8],
            decoder_in_channels=[16, 16, 16],
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            decoder_layers=2,
            num_queries=4,
            num_labels=3,
            num_denoising=0,
        )
    )
    offsets = [name for name, module in model.named_modules() if name.endswith("sampling_offsets")]
    assert len(offsets) == 2 and not any(model.get_submodule(name).weight.any() for name in offsets)
    sparsify(model, AutoSparseConfig())
    report = sparsity_report(model)
    assert {report.dense[name] for name in offsets} == {FRESH}
    assert report.sparsity == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_a_dead_channel_takes_part_in_a_layer_that_is_not(granularity):
    layer = nn.Linear(8, 4)
    layer.weight.data[1] = 0
    sparsify(layer, AutoSparseConfig(first_last="none", threshold_granularity=granularity))
    threshold = layer.sparsifier.threshold.detach()
    assert threshold.isfinite().all() and not layer.sparse_weight()[1].any()
    if granularity == "channel":
        assert threshold[1] == threshold[[0, 2, 3]].min()


def lora(model: nn.Module, **settings) -> nn.Module:
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "fc1"], **settings))


@pytest.mark.parametrize("method", ["fixed_mask", "autosparse", "gmp"])
def test_adapters_stay_dense_unless_asked(method):
    model = lora(pruned(tiny_translator()), modules_to_save=["fc2"])
    sparsify(model, config(method))
    names = list(sparse_layers(model))
    assert names and all(name.endswith("fc2.modules_to_save.default") for name in names)
    dense = sparsity_report(model).dense
    adapters = [name for name in dense if ".lora_" in name]
    assert len(adapters) == 10 and {dense[name] for name in adapters} == {ADAPTER}
    base = next(name for name in dense if name.endswith("fc1.base_layer"))
    assert dense[base] == "frozen (requires_grad=False)"


def test_adapters_can_be_asked_for():
    model = lora(tiny_translator())
    sparsify(model, GMPConfig(target_sparsity=0.5, target_modules=["lora_A"]))
    assert list(sparse_layers(model)) and all(".lora_A." in name for name in sparse_layers(model))


def test_a_base_that_is_all_frozen_leaves_nothing():
    with pytest.raises(ValueError, match=r"lora_B.default: belongs to an adapter .target_modules can name it"):
        sparsify(lora(pruned(tiny_translator())), FixedMaskConfig())


def test_adapters_and_new_heads_learn_as_with_stock(tmp_path):
    """To the bit: what else is sparse keeps its zeros and is the same layer, so that nothing differs."""

    def model():
        wrapped = lora(tiny_translator(), modules_to_save=["fc2"])
        wrapped.base_model.model.model.decoder.layers[0].self_attn.v_proj.requires_grad_(True)
        nn.init.zeros_(wrapped.base_model.model.model.decoder.layers[0].self_attn.v_proj.weight)
        return wrapped

    settings = {"max_steps": 20, "learning_rate": 1e-2}
    models = [sparsify(model(), FixedMaskConfig()), model()]
    for number, callbacks in enumerate([[AutoSparseCallback()], []]):
        arguments = tiny_arguments(tmp_path / str(number), **settings)
        Trainer(models[number], arguments, train_dataset=tiny_pairs(40), callbacks=callbacks).train()
    for name, stock in models[1].named_parameters():
        torch.testing.assert_close(models[0].get_parameter(name), stock, rtol=0, atol=0, msg=name)
    assert len([name for name, p in models[0].named_parameters() if "lora_B" in name and p.any()]) == 5


def test_prompts_are_an_adapter():
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=20)
    prompts = peft.PromptEncoderConfig(task_type="SEQ_CLS", num_virtual_tokens=2, encoder_hidden_size=8)
    model = peft.get_peft_model(BertForSequenceClassification(config), prompts)
    model.base_model.bert.encoder.requires_grad_(True)
    sparsify(model, AutoSparseConfig(first_last="none"))
    dense = sparsity_report(model).dense
    assert {reason for name, reason in dense.items() if "mlp_head" in name} == {ADAPTER}
    assert not [name for name in sparse_layers(model) if "prompt_encoder" in name]


class Quantised(nn.Module):
    """As GPTQ stores a layer: nothing but buffers."""

    def __init__(self, name: str, tensor: torch.Tensor):
        super().__init__()
        self.register_buffer(name, tensor)


@pytest.mark.parametrize(
    ("layer", "stored"),
    [
        (Quantised("qweight", torch.zeros(2, 4, dtype=torch.int32)), "qweight of dtype torch.int32"),
        (Quantised("W_q", torch.zeros(2, 4, dtype=torch.uint8)), "W_q of dtype torch.uint8"),
        (
            Quantised("down_proj_blocks", torch.zeros(2, 4, 4, dtype=torch.uint8)),
            "down_proj_blocks of dtype torch.uint8",
        ),
        (nn.Linear(4, 4).requires_grad_(False).to(torch.float8_e4m3fn), "weight of dtype torch.float8_e4m3fn"),
    ],
)
def test_a_quantised_model_is_called_quantised(layer, stored):
    with pytest.raises(ValueError, match=f"quantised .{stored}.: load the model without quantisation"):
        sparsify(nn.Sequential(layer), AutoSparseConfig(first_last="none"))


def test_a_model_without_a_matrix_is_described():
    with pytest.raises(ValueError, match="its 16 parameters are all in vectors and scalars"):
        sparsify(nn.Sequential(nn.LayerNorm(8)), AutoSparseConfig())
    with pytest.raises(ValueError, match="it has no parameters"):
        sparsify(nn.Sequential(nn.ReLU()), AutoSparseConfig())
