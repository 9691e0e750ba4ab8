"""Translate a test set and score it, or score translations that exist: sacreBLEU, compound-split BLEU and chrF.

    python -m examples.wmt14.score --model runs/en-de --source newstest2014.en --reference newstest2014.de
    accelerate launch -m examples.wmt14.score --model runs/en-de --source newstest2014.en --reference newstest2014.de
    python -m examples.wmt14.score --hypotheses hypotheses.de --reference newstest2014.de --json

Files hold one sentence a line in UTF-8 and may be gzipped (.gz). Under `accelerate launch` each process translates its
share and the first one scores.
"""

import argparse
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sacrebleu.metrics import CHRF

from examples.wmt14.translate import load, processes, split_lines, translate_shared
from hf_autosparse.metrics.bleu import CompoundSplitBleu, SacreBleu


def main(argv: list[str] | None = None) -> dict[str, Any] | None:
    """Returns what `--json` prints; None on every process but the first."""
    options = parse_options(argv)
    files = {path: read_lines(path) for path in (options.hypotheses, options.source, *options.reference) if path}
    counts = {path: len(lines) for path, lines in files.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{path}: {count}" for path, count in counts.items())
        raise SystemExit(f"The files differ in their number of lines: {listed}. They must pair up line by line.")
    files = {path: lines[: options.limit] for path, lines in files.items()}

    state = processes()
    if options.hypotheses:
        hypotheses = files[options.hypotheses]
    else:
        hypotheses = translate_shared(
            *load(options.model),
            files[options.source],
            num_beams=options.num_beams,
            length_penalty=options.length_penalty,
            max_tokens_per_batch=options.max_tokens_per_batch,
            batch_size=options.batch_size,
        )
    state.destroy_process_group()
    if not state.is_main_process:
        return None
    if options.output:
        write_lines(options.output, hypotheses)
    result = score(hypotheses, [files[path] for path in options.reference])
    print(json.dumps(result, indent=2) if options.json else table(result))
    return result


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", metavar="DIR", help="saved model and tokenizer to translate --source with")
    what.add_argument("--hypotheses", metavar="FILE", help="translations to score")
    parser.add_argument("--reference", metavar="FILE", nargs="+", required=True, help="one file or several")
    parser.add_argument("--source", metavar="FILE", help="with --hypotheses only its number of lines is checked")
    parser.add_argument("--output", metavar="FILE", help="where to write the translations, one a line")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N sentences")
    parser.add_argument("--num-beams", type=int, default=4)
    parser.add_argument("--length-penalty", type=float, default=0.6, help="as transformers counts it, see translate.py")
    parser.add_argument("--max-tokens-per-batch", type=int, default=4096, help="source tokens, padding included")
    parser.add_argument("--batch-size", type=int, help="most sentences in a batch (default: no such limit)")
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    options = parser.parse_args(argv)
    if options.model and not options.source:
        parser.error("--model needs --source, the file to translate")
    if options.hypotheses and options.output:
        parser.error("--output goes with --model: with --hypotheses nothing is translated")
    if options.limit is not None and options.limit < 1:
        parser.error(f"--limit must be at least 1, got {options.limit}")
    return options


def score(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """`references`: one list of sentences for each file. Scores are in [0, 100]."""
    by_sentence = list(zip(*references, strict=True))
    chrf = CHRF()
    return {
        "sentences": len(hypotheses),
        "sacrebleu": SacreBleu(keep_in_memory=True).compute(predictions=hypotheses, references=by_sentence),
        "compound_split_bleu": CompoundSplitBleu(keep_in_memory=True).compute(
            predictions=hypotheses, references=by_sentence
        ),
        "chrf": {
            "chrf": chrf.corpus_score(list(hypotheses), [list(stream) for stream in references]).score,
            "signature": str(chrf.get_signature()),
        },
    }


def table(result: dict[str, Any]) -> str:
    rows = (
        ("sacreBLEU", result["sacrebleu"]["bleu"], result["sacrebleu"]["signature"]),
        ("chrF2", result["chrf"]["chrf"], result["chrf"]["signature"]),
        (
            "tokenised, compound-split BLEU *",
            result["compound_split_bleu"]["bleu"],
            result["compound_split_bleu"]["signature"],
        ),
    )
    lines = [f"{result['sentences']} sentences"]
    lines += [f"{name:<32}  {value:6.2f}  {signature}" for name, value, signature in rows]
    lines.append("* get_ende_bleu.sh of the early Transformer papers, German only: not comparable with sacreBLEU")
    return "\n".join(lines)


def read_lines(path: str) -> list[str]:
    data = gzip.decompress(Path(path).read_bytes()) if path.endswith(".gz") else Path(path).read_bytes()
    return split_lines(data.decode("utf-8"))


def write_lines(path: str, lines: Sequence[str]) -> None:
    data = "".join(f"{line}\n" for line in lines).encode("utf-8")
    Path(path).write_bytes(gzip.compress(data) if path.endswith(".gz") else data)


if __name__ == "__main__":
    main()
