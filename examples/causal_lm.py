"""Train a causal language model sparse, from scratch or from a pretrained model.

Without arguments it trains a tiny model on built-in sentences, without a download.

    python examples/causal_lm.py --model HuggingFaceTB/SmolLM2-135M --data stories.txt --sparsity 0.7
    python examples/causal_lm.py --model HuggingFaceTB/SmolLM2-135M --data roneneldan/TinyStories
"""

import argparse

from datasets import Dataset, load_dataset
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    LlamaConfig,
    PreTrainedTokenizerFast,
    TrainingArguments,
)

from hf_autosparse import AutoSparseConfig, AutoSparseTrainer, sparsity_report

ANIMALS, VERBS, PLACES = ("dog", "cat", "bird"), ("sees", "likes", "leaves"), ("house", "garden", "river", "tree")
TEXT = [f"the {animal} {verb} the {place}" for animal in ANIMALS for verb in VERBS for place in PLACES]


def tiny_model_and_tokenizer():
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(TEXT, trainers.WordLevelTrainer(special_tokens=["<pad>", "<unk>", "</s>"]))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", model_input_names=["input_ids"]
    )
    size = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=None, eos_token_id=2, **size)
    return AutoModelForCausalLM.from_config(config), tokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory or Hub name of a model (default: a tiny new one)")
    parser.add_argument("--data", help=".txt file with a document a line, or Hub name of a data set with column 'text'")
    parser.add_argument("--output", default="runs/causal_lm")
    parser.add_argument("--sparsity", type=float, default=0.5, help="fraction of zeros that the run ends with")
    parser.add_argument("--epochs", type=float, default=10.0)
    options = parser.parse_args()

    if options.model is None:
        model, tokenizer = tiny_model_and_tokenizer()
    else:
        model = AutoModelForCausalLM.from_pretrained(options.model)
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    if options.data is None:
        data = Dataset.from_dict({"text": TEXT})
    elif options.data.endswith(".txt"):
        data = load_dataset("text", data_files=options.data, split="train")
    else:
        data = load_dataset(options.data, split="train")
    data = data.map(
        lambda row: tokenizer(row["text"] + tokenizer.eos_token, truncation=True, max_length=256),
        remove_columns=data.column_names,
    )

    rate = 1e-3 if options.model is None else 5e-5
    arguments = TrainingArguments(options.output, num_train_epochs=options.epochs, learning_rate=rate, logging_steps=10)
    sparse_config = AutoSparseConfig(target_sparsity=options.sparsity)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)  # labels are the tokens themselves
    trainer = AutoSparseTrainer(
        model, arguments, sparse_config, train_dataset=data, data_collator=collator, processing_class=tokenizer
    )
    trainer.train()
    trainer.save_model()  # plain weights with exact zeros: AutoModelForCausalLM.from_pretrained loads them
    print(sparsity_report(model))


if __name__ == "__main__":
    main()
