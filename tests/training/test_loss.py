"""Whose loss is weighted by tokens, and who divides by the accumulation steps."""

import copy
import functools
import linecache
import math

import pytest
import torch
import transformers as tf
from transformers import PretrainedConfig, Trainer, set_seed

from architectures import ARCHITECTURES
from hf_autosparse import AutoSparseConfig, AutoSparseMixin, AutoSparseTrainer
from hf_autosparse.training.label_mean import innermost, is_mean_over_labels
from tiny import VOCABULARY, tiny_arguments, tiny_pairs, tiny_translator

DENSE = AutoSparseConfig(threshold_init=-40.0, threshold_lr=0.0, threshold_weight_decay=0.0, alpha_schedule="fixed")


class Tagger(torch.nn.Module):
    """Its forward takes no num_items_in_batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.hidden = torch.nn.Embedding(VOCABULARY, 8), torch.nn.Linear(8, 8)
        self.head = torch.nn.Linear(8, VOCABULARY)
        self.config = PretrainedConfig()

    def forward(self, input_ids, labels=None):
        logits = self.head(self.hidden(self.embed(input_ids)).relu())
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": loss, "logits": logits}


class TaggerWithKwargs(Tagger):
    """Trainer hands it num_items_in_batch, which it ignores."""

    def forward(self, input_ids, labels=None, **kwargs):
        logits = self.head(self.hidden(self.embed(input_ids)).relu())
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": loss, "logits": logits}


class OwnLoss:
    """As transformers' documentation shows: the mean of a batch, returned as it is."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        loss = outputs["loss"] * 1.5
        return (loss, outputs) if return_outputs else loss


class AddedTerm:
    """A term of its own, on top of the loss of the trainer behind it."""

    loss_is_scaled_for_ga = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        return loss + 0 * self.model.head.weight.sum()


def losses_and_norms(trainer_class, model, output_dir, size, steps, sparse=True, **changes):
    arguments = {
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": steps,
        "logging_steps": 1,
        "max_steps": 3,
        "learning_rate": 0.1,
        "optim": "sgd",
    }
    kwargs = {"sparse_config": DENSE} if sparse else {}
    trainer = trainer_class(
        model=model, args=tiny_arguments(output_dir, **(arguments | changes)), train_dataset=tiny_pairs(24), **kwargs
    )
    trainer.train()
    return [(e["loss"], e["grad_norm"]) for e in trainer.state.log_history if "loss" in e]


@pytest.mark.parametrize("model_class", [Tagger, TaggerWithKwargs])
@pytest.mark.parametrize("scaled", [None, False, True])
def test_a_subclass_with_a_loss_of_its_own_gets_what_stock_trainer_makes_of_it(tmp_path, model_class, scaled):
    fields = {"loss_is_scaled_for_ga": scaled}
    stock = type("Stock", (OwnLoss, Trainer), fields)
    expected = losses_and_norms(stock, model_class(), tmp_path, 1, 8, sparse=False)
    for bases in ((OwnLoss, AutoSparseTrainer), (AutoSparseMixin, OwnLoss, Trainer)):
        ours = losses_and_norms(type("Ours", bases, fields), model_class(), tmp_path, 1, 8)
        assert torch.tensor(ours) == pytest.approx(torch.tensor(expected), rel=1e-5)


@pytest.mark.parametrize("model_class", [Tagger, TaggerWithKwargs])
@pytest.mark.parametrize("scaled", [None, False, True])
def test_trainers_own_loss_is_the_mean_over_all_tokens_whatever_the_switch_says(tmp_path, model_class, scaled):
    trainer_class = type("Ours", (AutoSparseTrainer,), {"loss_is_scaled_for_ga": scaled})
    one = losses_and_norms(trainer_class, model_class(), tmp_path, 8, 1)
    for size, steps in ((1, 8), (2, 4), (4, 2)):
        accumulated = losses_and_norms(trainer_class, model_class(), tmp_path, size, steps)
        assert torch.tensor(accumulated) == pytest.approx(torch.tensor(one), rel=1e-4)


def test_a_subclass_that_calls_super_gets_the_weighted_loss(tmp_path):
    trainer_class = type("Ours", (AddedTerm, AutoSparseTrainer), {})
    one = losses_and_norms(AutoSparseTrainer, Tagger(), tmp_path, 8, 1)
    accumulated = losses_and_norms(trainer_class, Tagger(), tmp_path, 1, 8)
    assert torch.tensor(accumulated) == pytest.approx(torch.tensor(one), rel=1e-4)


def test_switches_of_trainer_stay_as_trainer_sets_them(tmp_path):
    for model, accepts in ((Tagger(), False), (TaggerWithKwargs(), True)):
        assert AutoSparseTrainer(model, tiny_arguments(tmp_path), DENSE).model_accepts_loss_kwargs is accepts


def test_batches_reach_a_trainer_of_somebodys_own_unchanged(tmp_path):
    class Batch(dict):
        pass

    class Other(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            assert isinstance(inputs, Batch)
            return model(inputs["input_ids"], inputs["labels"])["loss"]

    def collate(pairs):
        return Batch({key: torch.stack([pair[key] for pair in pairs]) for key in pairs[0]})

    class Sparse(AutoSparseMixin, Other):
        pass

    trainer = Sparse(
        Tagger(), tiny_arguments(tmp_path, max_steps=1), DENSE, train_dataset=tiny_pairs(8), data_collator=collate
    )
    assert trainer.train().global_step == 1


# ---- Which losses are known ----


def forward_from(body: str, **members) -> torch.nn.Module:
    """A model whose forward is that of a class in a file, as the source of a real one is."""
    source = f"def forward(self, input_ids, labels=None, **kwargs):\n    {body}\n"
    model = Tagger()
    for name, member in members.items():
        setattr(model, name, member)
    known = {"torch": torch, "nn": torch.nn, "CrossEntropyLoss": torch.nn.CrossEntropyLoss}
    namespace = dict(known)
    file = f"<forward {hash(body)}>"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    exec(compile(source, file, "exec"), namespace)
    model.__class__ = type("Written", (Tagger,), {"forward": namespace["forward"]})
    return model


KNOWN = [
    "loss = torch.nn.functional.cross_entropy(logits.view(-1, 9), labels.view(-1)); return {'loss': loss}",
    "loss_fct = CrossEntropyLoss(); loss = loss_fct(logits, labels); return Output(loss=loss, logits=logits)",
    "loss_fct = CrossEntropyLoss(ignore_index=-100); labels = labels.to(logits.device);"
    " loss = loss_fct(logits, labels.reshape(-1)); return ((loss,) + logits) if loss is not None else logits",
    "return {'loss': nn.CrossEntropyLoss()(logits, labels)}",
    "lm_loss = self.criterion(logits, labels); return Output(loss=lm_loss)",
    "loss = None; loss = torch.nn.functional.mse_loss(logits.squeeze(), labels.squeeze()); return Output(loss=loss)",
]
UNKNOWN = [
    "loss = torch.nn.functional.cross_entropy(logits, labels, reduction='sum'); return {'loss': loss}",
    "loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=255); return {'loss': loss}",
    "loss = torch.nn.functional.cross_entropy(logits, labels, weight=self.w); return {'loss': loss}",
    "loss = CrossEntropyLoss(self.w)(logits, labels); return {'loss': loss}",
    "loss = CrossEntropyLoss(reduction='none')(logits, labels).mean(); return {'loss': loss}",
    "loss = CrossEntropyLoss()(logits, labels); loss += self.router(logits); return {'loss': loss}",
    "loss = CrossEntropyLoss()(logits, labels); other = loss + 1; return {'loss': other}",
    "loss = CrossEntropyLoss()(logits, labels); loss = loss * 2; return {'loss': loss}",
    "a = CrossEntropyLoss()(logits, labels); b = CrossEntropyLoss()(more, labels); return {'loss': a + b}",
    "loss = CrossEntropyLoss()(logits[:, :-1], labels[:, 1:]); return {'loss': loss}",
    "labels = labels[:, 1:]; loss = CrossEntropyLoss()(logits, labels); return {'loss': loss}",
    "loss = CrossEntropyLoss()(logits, labels); aux_loss = self.aux(logits); return {'loss': loss}",
    "loss = torch.nn.functional.ctc_loss(logits, labels); return {'loss': loss}",
    "loss = self.loss_function(logits, labels); return {'loss': loss}",
    "loss = self.smooth(logits, labels); return {'loss': loss}",
    "loss = self.weighted(logits, labels); return {'loss': loss}",
    "outputs = self.inner(input_ids, labels=labels); return outputs",
    "outputs = self.inner(input_ids, labels=labels); return {'loss': outputs.loss}",
    "return {'loss': CrossEntropyLoss()(logits, targets)}",
]


@pytest.mark.parametrize("body", KNOWN)
def test_a_forward_with_a_plain_mean_is_known(body):
    assert is_mean_over_labels(forward_from(body, criterion=torch.nn.CrossEntropyLoss()))


@pytest.mark.parametrize("body", UNKNOWN)
def test_any_other_forward_is_not_known(body):
    members = {"smooth": torch.nn.CrossEntropyLoss(label_smoothing=0.1)}
    members["weighted"] = torch.nn.CrossEntropyLoss(torch.ones(9))
    assert not is_mean_over_labels(forward_from(body, **members))


def test_a_forward_without_source_or_of_the_instance_is_not_known():
    namespace = {}
    exec("def forward(self, labels): pass", namespace)
    assert not is_mean_over_labels(type("Typed", (torch.nn.Module,), {"forward": namespace["forward"]})())
    model = Tagger()
    assert is_mean_over_labels(model)
    model.forward = functools.partial(Tagger.forward, model)
    assert not is_mean_over_labels(model)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_the_loss_of_each_promised_architecture_is_known(architecture):
    may_add_router_loss = architecture.name == "mixtral-moe"  # it passes num_items_in_batch on, so Trainer is right
    assert is_mean_over_labels(architecture.model()) is not may_add_router_loss


def test_a_loss_function_that_was_set_is_not_known():
    model = next(a for a in ARCHITECTURES if a.kind == "causal").model()
    assert is_mean_over_labels(model)
    model.loss_function = lambda logits, labels, vocab_size, **kwargs: logits.sum()
    assert not is_mean_over_labels(model)


@pytest.mark.filterwarnings("ignore")
def test_the_wrappers_of_peft_and_compile_are_looked_into():
    peft = pytest.importorskip("peft")
    model = next(a for a in ARCHITECTURES if a.name == "llama-untied").model()
    wrapped = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules="all-linear"))
    assert not is_mean_over_labels(wrapped) and is_mean_over_labels(innermost(wrapped))
    prompt = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    prompted = peft.get_peft_model(copy.deepcopy(model), prompt)
    assert innermost(prompted) is prompted  # its tokens come before the first label


# ---- All other losses are what stock makes of them ----

AUDIO = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
AUDIO |= {"conv_dim": (8, 8), "conv_stride": (5, 4), "conv_kernel": (10, 4), "num_feat_extract_layers": 2}
AUDIO |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "layerdrop": 0.0, "vocab_size": 12}
TEXT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def speech():
    quiet = dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"), 0.0)
    config = tf.Wav2Vec2Config(**AUDIO, **quiet, final_dropout=0.0, mask_time_prob=0.0)
    assert config.ctc_loss_reduction == "sum"
    return tf.Wav2Vec2ForCTC(config), ["input_values"]


def experts():
    moe = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "num_key_value_heads": 2}
    return tf.Qwen3MoeForCausalLM(tf.Qwen3MoeConfig(**TEXT, **moe, output_router_logits=True)), ["input_ids"]


def two_heads():
    return tf.BertForPreTraining(tf.BertConfig(**TEXT, **STILL)), ["input_ids", "next_sentence_label"]


def depth():
    shape = TEXT | {"image_size": 32, "patch_size": 8, "num_labels": 3, "num_hidden_layers": 4}
    shape |= {"backbone_out_indices": [0, 1, 2, 3]}
    shape |= {"neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8, "reassemble_factors": [1, 1, 1, 1]}
    config = tf.DPTConfig(**shape, **STILL, semantic_classifier_dropout=0.0)
    return tf.DPTForSemanticSegmentation(config), ["pixel_values"]


def summed():
    body = "logits = self.head(self.embed(input_ids))"
    body += "; loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction='sum')"
    return forward_from(body + "; return {'loss': loss}"), ["input_ids"]


def example(keys, i, generator):
    def integers(high, *shape):
        return torch.randint(1, high, shape, generator=generator)

    made = {"labels": integers(11, 6)}
    made["labels"][2 + i % 4 :] = -100
    if "input_ids" in keys:
        made["input_ids"] = integers(11, 6)
    if "next_sentence_label" in keys:
        made["next_sentence_label"] = torch.tensor(i % 2)
    if "input_values" in keys:
        made["input_values"] = torch.randn(800, generator=generator)
    if "pixel_values" in keys:
        made["pixel_values"] = torch.randn(3, 32, 32, generator=generator)
        made["labels"] = integers(3, 32, 32)
        made["labels"][: 8 * (i % 4)] = 255
    return made


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("build", [speech, experts, two_heads, depth, summed])
def test_a_loss_that_is_no_mean_over_labels_is_what_stock_makes_of_it(tmp_path, build):
    found = []
    for trainer_class in (Trainer, AutoSparseTrainer):
        set_seed(0)
        model, keys = build()
        generator = torch.Generator().manual_seed(0)
        kwargs = {} if trainer_class is Trainer else {"sparse_config": DENSE}
        trainer = trainer_class(
            model,
            tiny_arguments(
                tmp_path,
                per_device_train_batch_size=2,
                gradient_accumulation_steps=4,
                logging_steps=1,
                max_steps=2,
                learning_rate=1e-3,
                optim="sgd",
            ),
            train_dataset=[example(keys, i, generator) for i in range(16)],
            **kwargs,
        )
        trainer.train()
        found.append([(e["loss"], e["grad_norm"]) for e in trainer.state.log_history if "loss" in e])
    assert len(found[0]) == 2
    assert torch.tensor(found[1]) == pytest.approx(torch.tensor(found[0]), rel=1e-4)


# ---- Micro-batches without a label ----


def cut_off(pairs):
    """Every third example has no label left."""
    for pair in pairs[::3]:
        pair["labels"] = torch.full_like(pair["labels"], -100)
    return pairs


def with_decoder_inputs(pairs):
    """Trainer's label smoothing takes the labels away from the model, which else makes these from them."""
    return [pair | {"decoder_input_ids": pair["input_ids"]} for pair in pairs]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_micro_batch_without_a_label_contributes_nothing(tmp_path, smoothing):
    found = []
    for size, steps in ((8, 1), (1, 8)):
        model = tiny_translator()
        for module in model.modules():
            if hasattr(module, "dropout"):
                module.dropout = 0.0
        trainer = AutoSparseTrainer(
            model,
            tiny_arguments(
                tmp_path,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=steps,
                logging_steps=1,
                max_steps=3,
                label_smoothing_factor=smoothing,
                optim="sgd",
            ),
            DENSE,
            train_dataset=with_decoder_inputs(cut_off(tiny_pairs(24))),
        )
        trainer.train()
        found.append([(e["loss"], e["grad_norm"]) for e in trainer.state.log_history if "loss" in e])
    assert torch.tensor(found[1]) == pytest.approx(torch.tensor(found[0]), rel=1e-4)


def test_a_whole_step_without_a_label_changes_nothing(tmp_path):
    pairs = tiny_pairs(8)
    for pair in pairs:
        pair["labels"] = torch.full_like(pair["labels"], -100)
    model = Tagger()
    before = copy.deepcopy(model.state_dict())
    trainer = AutoSparseTrainer(model, tiny_arguments(tmp_path, max_steps=2, optim="sgd"), DENSE, train_dataset=pairs)
    assert trainer.train().training_loss == 0.0
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize("scaled", [False, True])
def test_it_contributes_nothing_to_a_loss_of_somebodys_own_either(tmp_path, scaled):
    trainer_class = type("Ours", (OwnLoss, AutoSparseTrainer), {"loss_is_scaled_for_ga": scaled})
    arguments = tiny_arguments(tmp_path, per_device_train_batch_size=1, max_steps=6, optim="sgd")
    trainer = trainer_class(Tagger(), arguments, DENSE, train_dataset=cut_off(tiny_pairs(24)))
    assert 0 < trainer.train().training_loss < float("inf")


# ---- A loss that is not finite ----


class Broken(Tagger):
    def forward(self, input_ids, labels=None):
        logits = self.head(self.hidden(self.embed(input_ids)).relu())
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": loss + torch.inf if self.training else loss, "logits": logits}


@pytest.mark.parametrize("filtered", [True, False])
def test_a_non_finite_loss_stops_or_is_left_to_trainer_and_its_filter(tmp_path, filtered):
    arguments = tiny_arguments(tmp_path, max_steps=3, logging_steps=1, logging_nan_inf_filter=filtered, optim="sgd")
    with pytest.raises(FloatingPointError, match="loss is inf at step 1"):
        AutoSparseTrainer(Broken(), arguments, DENSE, train_dataset=tiny_pairs(24)).train()
    trainer_class = type("Leaving", (AutoSparseTrainer,), {"stops_on_non_finite_loss": False})
    trainer = trainer_class(Broken(), arguments, DENSE, train_dataset=tiny_pairs(24))
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert [math.isfinite(loss) for loss in logged] == [filtered] * 3
