"""Train a text classifier sparse, from scratch or from a pretrained model.

Without arguments it trains a tiny model on built-in sentences, without a download.

    python examples/text_classification.py --model bert-base-uncased --data reviews.csv --sparsity 0.7
    python examples/text_classification.py --model bert-base-uncased --data cornell-movie-review-data/rotten_tomatoes
"""

import argparse

from datasets import Dataset, load_dataset
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    PreTrainedTokenizerFast,
    TrainingArguments,
)

from hf_autosparse import AutoSparseConfig, AutoSparseTrainer, sparsity_report

WORDS, THINGS = {"good": 1, "great": 1, "lovely": 1, "bad": 0, "dull": 0, "awful": 0}, ("film", "book", "song", "meal")
TEXT = [{"text": f"a {word} {thing}", "label": label} for word, label in WORDS.items() for thing in THINGS]


def tiny_model_and_tokenizer(labels):
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["<pad>", "<unk>"])
    words.train_from_iterator([row["text"] for row in TEXT], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")
    size = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(tokenizer), pad_token_id=0, num_labels=labels, **size)
    return AutoModelForSequenceClassification.from_config(config), tokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory or Hub name of a model (default: a tiny new one)")
    parser.add_argument(
        "--data", help=".csv file or Hub name of a data set, with columns 'text' and 'label' (0, 1, ...)"
    )
    parser.add_argument("--output", default="runs/text_classification")
    parser.add_argument("--sparsity", type=float, default=0.5, help="fraction of zeros that the run ends with")
    parser.add_argument("--epochs", type=float, default=10.0)
    options = parser.parse_args()

    if options.data is None:
        data = Dataset.from_list(TEXT)
    elif options.data.endswith(".csv"):
        data = load_dataset("csv", data_files=options.data, split="train")
    else:
        data = load_dataset(options.data, split="train")
    labels = len(set(data["label"]))
    if options.model is None:
        model, tokenizer = tiny_model_and_tokenizer(labels)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=labels)
        tokenizer = AutoTokenizer.from_pretrained(options.model)
    data = data.map(lambda row: tokenizer(row["text"], truncation=True, max_length=256)).train_test_split(0.1, seed=0)
    rate = 1e-3 if options.model is None else 5e-5
    trainer = AutoSparseTrainer(
        model,
        TrainingArguments(options.output, num_train_epochs=options.epochs, learning_rate=rate),
        AutoSparseConfig(target_sparsity=options.sparsity),
        train_dataset=data["train"],
        eval_dataset=data["test"],
        processing_class=tokenizer,
        compute_metrics=lambda outputs: {"accuracy": (outputs.predictions.argmax(-1) == outputs.label_ids).mean()},
    )
    trainer.train()
    print(trainer.evaluate())
    trainer.save_model()  # plain weights with exact zeros: stock from_pretrained loads them
    print(sparsity_report(model))


if __name__ == "__main__":
    main()
