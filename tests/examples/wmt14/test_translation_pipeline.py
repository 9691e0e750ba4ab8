"""`pipeline("translation")` with a tiny model and a tokenizer trained here."""

import pytest
import torch
import transformers.pipelines
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    M2M100Config,
    M2M100ForConditionalGeneration,
    PreTrainedTokenizerFast,
    pipeline,
)

from examples.wmt14 import translation_pipeline as pipelines
from examples.wmt14.translation_pipeline import TranslationPipeline, register_translation_pipeline

SENTENCES = ["a man reads a long book", "two dogs", "the small child plays with two dogs in the park"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model of random weights and its tokenizer."""
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    words.train_from_iterator(SENTENCES, trainers.WordLevelTrainer(special_tokens=special, show_progress=False))
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    torch.manual_seed(1)
    config = M2M100Config(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        init_std=1.0,  # so that the output depends on the source
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
    )
    path = tmp_path_factory.mktemp("model")
    model = M2M100ForConditionalGeneration(config)
    model.generation_config.suppress_tokens = [0, 1, 3]  # random weights would say little else
    model.generation_config.min_new_tokens = 3
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def by_hand(folder, sentence: str, **generate_kwargs) -> str:
    """What the pipeline should print: tokenizer, `generate`, tokenizer."""
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(sentence, return_tensors="pt", return_token_type_ids=False)
    output = model.generate(**inputs, **generate_kwargs)
    return tokenizer.batch_decode(output, skip_special_tokens=True)[0]


def test_pipeline_finds_the_task_and_equals_generate(folder):
    translator = pipeline("translation", model=str(folder))
    assert isinstance(translator, TranslationPipeline)
    expected = [by_hand(folder, sentence, num_beams=2, max_new_tokens=8) for sentence in SENTENCES]
    assert len(set(expected)) > 1  # else the comparisons below would say little
    assert translator(SENTENCES[0], num_beams=2, max_new_tokens=8) == [{"translation_text": expected[0]}]
    results = [{"translation_text": text} for text in expected]
    assert translator(SENTENCES, num_beams=2, max_new_tokens=8) == results
    assert translator(SENTENCES, num_beams=2, max_new_tokens=8, batch_size=3) == results


def test_generate_arguments_may_be_given_when_the_pipeline_is_made(folder):
    translator = pipeline("translation", model=str(folder), max_new_tokens=3)
    assert translator("two dogs") == [{"translation_text": by_hand(folder, "two dogs", max_new_tokens=3)}]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_several_translations_of_each_sentence(folder, batch_size):
    translator = pipeline("translation", model=str(folder))
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 6}
    results = translator(SENTENCES[:2], batch_size=batch_size, **options)
    assert [len(alternatives) for alternatives in results] == [3, 3]
    for sentence, alternatives in zip(SENTENCES, results, strict=False):
        assert alternatives[0] == {"translation_text": by_hand(folder, sentence, **options)}


@pytest.mark.parametrize(
    ("own_limit", "given", "expected"),
    [
        (None, {}, 2 * 7 + 10),  # "a man reads a long book </s>" has 7 tokens
        (None, {"max_new_tokens": 5}, 5),
        (None, {"max_length": 6}, 5),  # counts the decoder's start token
        (9, {}, 8),
    ],
)
def test_length_limit(folder, own_limit, given, expected):
    translator = pipeline("translation", model=str(folder))
    translator.model.generation_config.eos_token_id = None  # never ends by itself
    translator.model.generation_config.max_length = own_limit
    inputs = translator.preprocess(SENTENCES[0])
    assert translator.forward(inputs, **given)["output_ids"].shape == (1, 1, 1 + expected)


def test_input_must_be_text(folder):
    translator = pipeline("translation", model=str(folder))
    with pytest.raises(TypeError, match="a string or a list of strings, got 3"):
        translator(3)


def test_a_version_that_refuses_the_task_is_an_error_with_the_way_round(monkeypatch):
    def refuse(task):
        raise KeyError(task)

    monkeypatch.setattr(transformers.pipelines, "check_task", refuse)
    with pytest.raises(RuntimeError, match=f'{transformers.__version__} does not accept the task "translation"'):
        register_translation_pipeline()


def test_registering_twice_is_quiet(caplog):
    register_translation_pipeline()
    assert pipelines.TASK in transformers.pipelines.get_supported_tasks()
    assert caplog.text == ""
