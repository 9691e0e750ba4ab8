"""The mixin before sentence-transformers' trainer, which ignores the state dict that it is given to save."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, BertTokenizer, set_seed

from hf_autosparse import AutoSparseConfig, AutoSparseMixin, finalize, sparse_layers, sparsify

st = pytest.importorskip("sentence_transformers")
datasets = pytest.importorskip("datasets")
losses = pytest.importorskip("sentence_transformers.losses")
modules = pytest.importorskip("sentence_transformers.models")

pytestmark = pytest.mark.filterwarnings("ignore")
WORDS = [f"w{i}" for i in range(30)]
SENTENCES = [" ".join(WORDS[(7 * i + j * (1 + i % 4)) % 30] for j in range(4)) for i in range(24)]
CONFIG = AutoSparseConfig(threshold_init={"sparsity": 0.5}, first_last="none")


class SparseSentenceTrainer(AutoSparseMixin, st.SentenceTransformerTrainer):
    pass


@pytest.fixture
def model(tmp_path):
    """A BERT of two layers, mean pooling and a dense layer, built and stored here."""
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    set_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    BertModel(BertConfig(vocab_size=35, **size)).save_pretrained(tmp_path / "bert")
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    words = modules.Transformer(str(tmp_path / "bert"))
    parts = [words, modules.Pooling(16, pooling_mode="mean"), modules.Dense(16, 16)]
    return st.SentenceTransformer(modules=parts, device="cpu")


def assert_written(directory, model):
    files = list(directory.rglob("*model.safetensors"))
    assert len(files) == 2  # BERT and the dense layer
    for file in files:
        assert not [key for key in load_file(file) if "sparsifier" in key]
    loaded = st.SentenceTransformer(str(directory), device="cpu")
    for name, layer in sparse_layers(model).items():
        assert torch.equal(loaded.get_submodule(name).weight, layer.sparse_weight()), name
    expected = model.eval().encode(SENTENCES, convert_to_tensor=True)
    found = loaded.encode(SENTENCES, convert_to_tensor=True)
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.99999


def test_what_is_saved_is_what_was_trained(tmp_path, model):
    pairs = datasets.Dataset.from_dict({"anchor": SENTENCES, "positive": SENTENCES[1:] + SENTENCES[:1]})
    arguments = st.SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "run"),
        per_device_train_batch_size=4,
        max_steps=6,
        learning_rate=1e-2,
        save_strategy="steps",
        save_steps=3,
        eval_strategy="steps",
        eval_steps=3,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = SparseSentenceTrainer(
        model=model,
        args=arguments,
        sparse_config=CONFIG,
        train_dataset=pairs,
        eval_dataset=pairs,
        loss=losses.MultipleNegativesRankingLoss(model),
    )
    trainer.train()
    assert any("dense" in name or name.startswith("2.") for name in sparse_layers(model))
    trainer.save_model(str(tmp_path / "final"))
    assert_written(tmp_path / "final", model)
    assert_written(tmp_path / "run" / "checkpoint-6", model)


def test_a_sparse_model_saves_itself_as_it_computes(tmp_path, model):
    sparsify(model, CONFIG)
    for name, save in (("save_pretrained", model.save_pretrained), ("save", model.save)):
        save(str(tmp_path / name))
        assert_written(tmp_path / name, model)
    finalize(model)
    model.save(str(tmp_path / "finalized"))
