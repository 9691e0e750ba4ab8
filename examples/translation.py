"""Train a translation model sparse, from scratch or from a pretrained model.

Without arguments it trains a tiny model on built-in sentences, without a download.

    python examples/translation.py --model google-t5/t5-small --data pairs.csv --sparsity 0.7
    python examples/translation.py --model google-t5/t5-small --data bentrevett/multi30k --columns en de
"""

import argparse

from datasets import Dataset, load_dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerFast,
    Seq2SeqTrainingArguments,
)

from hf_autosparse import AutoSparseConfig, AutoSparseSeq2SeqTrainer, sparsity_report

NOUNS = {"dog": "der Hund", "man": "der Mann", "cat": "die Katze", "child": "das Kind", "horse": "das Pferd"}
VERBS = {"sleeps": "schläft", "eats": "frisst", "runs": "läuft", "waits": "wartet"}
PAIRS = [{"en": f"the {noun} {verb}", "de": f"{NOUNS[noun]} {VERBS[verb]}"} for noun in NOUNS for verb in VERBS]


def tiny_model_and_tokenizer():
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    texts = (text for pair in PAIRS for text in pair.values())
    words.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=["<pad>", "<unk>", "</s>"]))
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="</s>")
    size = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256}
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 2, "decoder_start_token_id": 2}
    return AutoModelForSeq2SeqLM.from_config(BartConfig(vocab_size=len(tokenizer), **size, **ids)), tokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory or Hub name of a model (default: a tiny new one)")
    parser.add_argument("--data", help=".csv file or Hub name of a data set, with a column for each language")
    parser.add_argument("--columns", nargs=2, default=["en", "de"], help="source and target (default: en de)")
    parser.add_argument("--output", default="runs/translation")
    parser.add_argument("--sparsity", type=float, default=0.5, help="fraction of zeros that the run ends with")
    parser.add_argument("--epochs", type=float, default=60.0)
    options = parser.parse_args()

    if options.model is None:
        model, tokenizer = tiny_model_and_tokenizer()
    else:
        model = AutoModelForSeq2SeqLM.from_pretrained(options.model)
        tokenizer = AutoTokenizer.from_pretrained(options.model)
    if options.data is None:
        pairs = Dataset.from_list(PAIRS)
    elif options.data.endswith(".csv"):
        pairs = load_dataset("csv", data_files=options.data, split="train")
    else:
        pairs = load_dataset(options.data, split="train")
    source, target = options.columns
    data = pairs.map(lambda pair: tokenizer(pair[source], text_target=pair[target], truncation=True, max_length=256))
    rate = 1e-3 if options.model is None else 5e-5
    arguments = Seq2SeqTrainingArguments(options.output, num_train_epochs=options.epochs, learning_rate=rate)
    sparse_config = AutoSparseConfig(target_sparsity=options.sparsity)
    collator = DataCollatorForSeq2Seq(tokenizer, model)
    trainer = AutoSparseSeq2SeqTrainer(
        model, arguments, sparse_config, train_dataset=data, data_collator=collator, processing_class=tokenizer
    )
    trainer.train()
    trainer.save_model()  # plain weights with exact zeros: AutoModelForSeq2SeqLM.from_pretrained loads them
    print(sparsity_report(model))
    tokens = model.generate(**tokenizer(pairs[0][source], return_tensors="pt").to(model.device), max_new_tokens=50)
    print(pairs[0][source], "->", tokenizer.decode(tokens[0], skip_special_tokens=True))


if __name__ == "__main__":
    main()
