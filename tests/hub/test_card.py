import math
import re

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from hf_autosparse import AutoSparseConfig, FixedMaskConfig, SparseConfig, sparsity_report
from hf_autosparse.hub.card import describe_loading, extend, insert, new_card
from hf_autosparse.hub.card_text import Loading
from hf_autosparse.hub.measured import Evaluation, Measured, TheoreticalFlops, last_evaluation, theoretical_flops
from hf_autosparse.reports.layer_names import layer_type
from hf_autosparse.reports.sparsity import LayerRow, SparsityReport
from hf_autosparse.reports.trajectory import LayerCost, Moment, Trajectory
from tiny import SPARSE, tiny_trainer

REPORT = SparsityReport(
    [
        LayerRow("layers.0.self_attn.q_proj", (10, 10), 0.5, None),
        LayerRow("layers.1.self_attn.q_proj", (10, 30), 0.9, None),
        LayerRow("layers.0.fc1", (20, 10), 0.25, None),
    ],
    {"embed": "embedding", "head": "last layer"},
)
PLAIN = Loading("me/model", "BertForSequenceClassification")


def measured(**changes) -> Measured:
    return Measured(**({"report": REPORT, "parameters": 1000} | changes))


def parsed(card: ModelCard) -> ModelCard:
    """What a reader of the file gets; raises where the metadata is not what the Hub takes."""
    return ModelCard(card.content)


# ---- Layer types ----


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("model.decoder.layers.0.encoder_attn.q_proj", (8, 8), "attention query"),
        ("bert.encoder.layer.0.attention.self.key", (8, 8), "attention key"),
        ("encoder.block.0.layer.0.SelfAttention.v", (8, 8), "attention value"),
        ("transformer.h.0.attn.c_attn", (8, 24), "attention query, key and value"),
        ("transformer.h.0.attn.c_proj", (8, 8), "attention output"),
        ("bert.encoder.layer.0.attention.output.dense", (8, 8), "attention output"),
        ("bert.encoder.layer.0.intermediate.dense", (12, 8), "feed-forward in"),
        ("bert.encoder.layer.0.output.dense", (8, 12), "feed-forward out"),
        ("transformer.h.0.mlp.c_proj", (12, 8), "feed-forward out"),
        ("model.layers.0.mlp.gate_proj", (12, 8), "feed-forward in"),
        ("encoder.block.0.layer.1.DenseReluDense.wo", (8, 12), "feed-forward out"),
        ("bert.pooler.dense", (8, 8), "pooler.dense"),
        ("0", (8, 8), "layer"),
        ("score", (2, 8), "score"),
        ("resnet.encoder.stages.2.layers.0.layer.1.convolution", (8, 8, 3, 3), "convolutions, stage 2"),
        ("layer3.0.conv1", (8, 8, 3, 3), "convolutions, stage 3"),
        ("convnext.encoder.stages.1.layers.0.dwconv", (8, 1, 7, 7), "depthwise convolutions, stage 1"),
        ("mobilenet_v1.layer.0.convolution", (8, 1, 3, 3), "depthwise convolutions"),
        ("mobilenet_v1.layer.1.convolution", (16, 8, 1, 1), "1 x 1 convolutions"),
    ],
)
def test_layer_type(name, shape, expected):
    assert layer_type(name, shape) == expected


# ---- What the card states ----


def test_sparsity_by_layer_type_and_in_total():
    text = new_card(measured(), PLAIN).text
    assert "| attention query | 2 | 400 | 80.00% |" in text  # (50 + 270) / 400
    assert "| feed-forward in | 1 | 200 | 25.00% |" in text
    assert "| **all sparse layers** | **3** | **600** | **61.67%** |" in text  # 370 / 600
    assert "Of all 1,000 parameters of the model, 37.00% are zeros of these layers." in text
    assert "- embedding: `embed`" in text and "- last layer: `head`" in text


def test_many_dense_layers_of_one_kind_are_summed_up():
    report = SparsityReport(REPORT.layers, {f"experts.{i}": "experts" for i in range(9)})
    text = new_card(measured(report=report), PLAIN).text
    assert "- experts: `experts.0`, `experts.1`, `experts.2` and 6 more\n" in text


def test_dense_twin_stands_beside_with_the_relative_change():
    evaluation = Evaluation({"eval_bleu": 37.17, "eval_loss": 2.0, "eval_zero": 1.0})
    card = new_card(measured(evaluation=evaluation, dense={"eval_bleu": 37.77, "eval_zero": 0.0}), PLAIN)
    assert "| metric | dense twin | this model | relative change |" in card.text
    assert "| `eval_bleu` | 37.77 | 37.17 | -1.59% |" in card.text  # -0.6 / 37.77
    assert "| `eval_loss` |  | 2 |  |" in card.text  # not measured on the twin
    assert "| `eval_zero` | 0 | 1 |  |" in card.text
    results = parsed(card).data.eval_results
    assert [(r.metric_type, r.metric_name, r.metric_value) for r in results] == [
        ("bleu", "eval_bleu", 37.17),
        ("loss", "eval_loss", 2.0),
        ("zero", "eval_zero", 1.0),
    ]
    assert {r.task_type for r in results} == {"text-classification"}


@pytest.mark.parametrize(
    ("dense", "message"),
    [
        ({"bleu": 1.0}, "dense_metrics has 'bleu', which was not measured on the .* model: measured were eval_bleu"),
        ({"eval_bleu": math.nan}, r"dense_metrics\['eval_bleu'\] = nan is not allowed: use a finite number"),
        ({"eval_bleu": "37"}, r"dense_metrics\['eval_bleu'\] = '37' is not allowed"),
    ],
)
def test_dense_metrics_that_cannot_be_compared(dense, message):
    with pytest.raises(ValueError, match=message):
        measured(evaluation=Evaluation({"eval_bleu": 37.0}), dense=dense)


def test_dense_metrics_without_any_evaluation():
    with pytest.raises(ValueError, match="'eval_bleu', which was not measured.*nothing was: call evaluate"):
        measured(dense={"eval_bleu": 37.0})


def test_flops_are_called_theoretical():
    flops = TheoreticalFlops(macs=4_089_000_000, inference=0.1875, training=0.3206)
    text = new_card(measured(flops=flops), PLAIN).text
    assert "## Theoretical FLOPs" in text and "Counted, not timed" in text and "4,089,000,000" in text
    assert "| inference | 0.1875 |" in text and "| training | 0.3206 |" in text
    assert "| training |" not in new_card(measured(flops=TheoreticalFlops(10, 0.5)), PLAIN).text


def test_flops_of_a_trajectory():
    """Two layers of 100 and 300 MACs; the second is sparse: 0 for 2 steps, then 0.8; its weight gradient is dense."""
    moments = [Moment(0, 0.0, 1.0, (0.0,), (0.0,), None), Moment(2, 1.0, 0.5, (0.8,), (0.0,), None)]
    run = Trajectory(4, ["b"], {"a": LayerCost(100, 10), "b": LayerCost(300, 30)}, moments)
    report = SparsityReport([LayerRow("b", (3, 10), 0.9)], {})  # of the weights that are uploaded
    result = theoretical_flops(run, report)
    assert result.macs == 400 and result.inference == pytest.approx((100 + 30) / 400)
    sparse_step = (2 * (100 + 60) / 400 + 1) / 3
    assert result.training == pytest.approx((1 + sparse_step) / 2)
    assert theoretical_flops(Trajectory(4, ["b"], run.layers, moments[1:]), report).training is None
    assert theoretical_flops(Trajectory(4, ["b"], {}, moments), report) is None
    assert theoretical_flops(None, report) is None


def test_what_was_not_measured_is_left_out():
    text = new_card(measured(), PLAIN).text
    headings = re.findall(r"^## (.*)", text, re.MULTILINE)
    assert headings == ["Sparsity", "How to load it"]
    assert "model-index" not in new_card(measured(), PLAIN).content


def test_configuration_and_figures():
    config = FixedMaskConfig(dense_modules=["fc1"])
    card = parsed(new_card(measured(config=config, figures=("plots/layer_sparsity.png",)), PLAIN))
    assert "The `FixedMaskConfig` of the run" in card.text
    assert "![layer sparsity](plots/layer_sparsity.png)" in card.text
    block = re.search(r"```yaml\n(.*?)```", card.text, re.DOTALL)[1]
    assert SparseConfig.from_dict(yaml.safe_load(block)) == config
    assert card.data.tags == ["sparse", "autosparse", "fixed_mask"]
    assert f"torch {torch.__version__}" in card.text


# ---- Loading ----


def test_loading_plain_packed_and_plain_again():
    card = new_card(measured(), PLAIN)
    assert 'BertForSequenceClassification.from_pretrained("me/model")' in card.text
    assert "import hf_autosparse" not in card.text and card.data.library_name == "transformers"
    plain = card.content
    describe_loading(card, Loading("me/model", PLAIN.model_class, packed=True, sizes=(1000, 412)))
    assert "import hf_autosparse  # first" in card.text and "412 bytes instead of 1,000 (41.2%)" in card.text
    assert card.data.library_name == "hf_autosparse"
    assert describe_loading(card, PLAIN).content == plain


def test_model_of_ones_own_is_loaded_by_state_dict():
    assert "model.load_state_dict(load_file(" in new_card(measured(), Loading("me/model", None)).text
    packed = new_card(measured(), Loading("me/model", None, packed=True))
    assert "import hf_autosparse" in packed.text and "hf_autosparse.unpack(" in packed.text
    assert new_card(measured(), Loading("me/model", None)).data.library_name is None


# ---- Sections in a card of somebody's own ----


def test_sections_go_before_the_second_heading_and_are_replaced_in_place():
    text = "# Title\n\nIntroduction.\n```bash\n# no heading\n```\n\n## Usage\n\nMine.\n"
    once = insert(text, {"sparsity": "50%", "loading": "so"})
    order = [once.index(part) for part in ("# no heading", "50%", "so", "## Usage", "Mine.")]
    assert order == sorted(order)
    again = insert(once.replace("Mine.", "Still mine."), {"sparsity": "60%"})
    assert again == once.replace("Mine.", "Still mine.").replace("50%", "60%")
    assert insert("No heading at all.", {"sparsity": "50%"}).endswith("-->\n")


def test_own_card_keeps_its_text_metadata_and_sections():
    own = ModelCard("---\nlicense: mit\ntags: [mine]\npipeline_tag: translation\n---\n# Mine\n\nText.\n")
    first = extend(own, measured(evaluation=Evaluation({"eval_bleu": 1.0})), PLAIN)
    other = SparsityReport(REPORT.layers[:1], {})
    kept = extend(parsed(first), measured(report=other), PLAIN, replace=False)
    assert kept.content == first.content
    assert kept.data.license == "mit" and kept.data.pipeline_tag == "translation" and "Text." in kept.text
    renewed = extend(parsed(first), measured(report=other, evaluation=Evaluation({"eval_bleu": 2.0})), PLAIN)
    assert "**50.00%**" in renewed.text and "**61.67%**" not in renewed.text
    assert [r.metric_value for r in renewed.data.eval_results] == [2.0]


# ---- Which evaluation describes the weights ----


def entry(step, **metrics):
    return {"step": step, "epoch": step / 10, **metrics}


def test_last_evaluation():
    log = [
        entry(10, loss=3.0),
        entry(10, eval_loss=2.5, eval_bleu=20.0, eval_runtime=1.0, eval_samples_per_second=8.0),
        entry(20, eval_loss=2.0, eval_bleu=30.0, eval_steps_per_second=0.1, eval_note="text", eval_broken=math.nan),
    ]
    metrics = {"eval_loss": 2.0, "eval_bleu": 30.0}
    assert last_evaluation(log, 20, None) == Evaluation(metrics, 20, 2.0, 20)
    assert last_evaluation(log, 25, None) == Evaluation(metrics, 20, 2.0, 25)
    assert last_evaluation(log[:1], 10, None) == Evaluation()


@pytest.mark.parametrize(
    ("evaluation", "sentence"),
    [
        (
            Evaluation({"eval_loss": 1.0}, 20, 2.0, 20),
            "Evaluated at step 20 (epoch 2), with the weights of this model.",
        ),
        (
            Evaluation({"eval_loss": 1.0}, 20, None, 25),
            "Evaluated at step 20; the weights of this model are those of step 25.",
        ),
        (
            Evaluation({"eval_loss": 1.0}, 10, 1.0, 10, is_best=True),
            "The weights are those of step 10, the best checkpoint of the run.",
        ),
    ],
)
def test_the_card_says_which_weights_were_evaluated(evaluation, sentence):
    assert f"| `eval_loss` | 1 |\n\n{sentence}\n" in new_card(measured(evaluation=evaluation), PLAIN).text


def test_several_evaluation_sets_are_put_together():
    log = [entry(10, eval_a_loss=1.0), entry(10, eval_b_loss=2.0)]
    assert last_evaluation(log, 10, None).metrics == {"eval_a_loss": 1.0, "eval_b_loss": 2.0}


def test_best_weights_have_their_own_evaluation():
    log = [entry(10, eval_loss=1.0), entry(20, eval_loss=2.0), entry(20, train_runtime=9.0)]
    best = last_evaluation(log, 20, 10)
    assert best.metrics == {"eval_loss": 1.0}
    assert (best.weights_step, best.is_best) == (10, True)
    assert last_evaluation([*log, entry(20, eval_loss=1.1)], 20, 10).metrics == {"eval_loss": 1.1}


# ---- The trainer's card ----


def test_trainer_fills_the_card_of_the_best_weights(tmp_path):
    trainer = tiny_trainer(
        tmp_path / "run",
        save_strategy="steps",
        save_steps=5,
        eval_strategy="steps",
        eval_steps=5,
        max_steps=15,
        load_best_model_at_end=True,
        metric_for_best_model="eval_away",
        greater_is_better=False,
        compute_metrics=lambda prediction: {"away": abs(trainer.state.global_step - 10)},
    )
    trainer.train()
    trainer.create_model_card(metrics={"test_bleu": 37.0}, dense_metrics={"test_bleu": 40.0}, dataset="Tiny pairs")
    card = ModelCard.load(tmp_path / "run" / "README.md")
    (best,) = [e for e in trainer.state.log_history if e["step"] == 10 and "eval_loss" in e]
    results = {r.metric_name: r.metric_value for r in card.data.eval_results}
    assert results == {"eval_loss": best["eval_loss"], "eval_away": 0.0, "test_bleu": 37.0}
    assert "The weights are those of step 10" in card.text and "| `test_bleu` | 40 | 37 | -7.50% |" in card.text
    assert "It achieves the following results" not in card.text  # of the last weights, not of these
    assert f"**{sparsity_report(trainer.model).sparsity:.2%}**" in card.text
    assert "the Tiny pairs dataset" in card.text and "### Training hyperparameters" in card.text
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_wrong_dense_metric_leaves_the_old_card(tmp_path):
    trainer = tiny_trainer(tmp_path / "run", max_steps=1)
    trainer.create_model_card()
    before = (tmp_path / "run" / "README.md").read_text()
    with pytest.raises(ValueError, match="'eval_bleu', which was not measured"):
        trainer.create_model_card(dense_metrics={"eval_bleu": 1.0})
    assert (tmp_path / "run" / "README.md").read_text() == before


def test_figures_beside_the_card_are_linked(tmp_path):
    trainer = tiny_trainer(tmp_path / "run", max_steps=1)
    (tmp_path / "run" / "plots").mkdir(parents=True)
    (tmp_path / "run" / "plots" / "sparsity.png").write_bytes(b"")
    trainer.create_model_card(tasks="translation")
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert "![sparsity](plots/sparsity.png)" in card.text and card.data.pipeline_tag == "translation"


def test_model_carries_the_tags(tmp_path):
    config = AutoSparseConfig(**SPARSE)
    trainer = tiny_trainer(tmp_path / "run", config=config, max_steps=1)
    assert trainer.model.model_tags == ["sparse", "autosparse"]
