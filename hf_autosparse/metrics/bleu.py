"""BLEU as `evaluate.Metric` classes that need no network and gather over processes.

    metric = SacreBleu(num_process=world_size, process_id=rank, experiment_id="run7")
    metric.add_batch(predictions=["Ein Mann liest."], references=["Ein Mann liest ein Buch."])  # each its own share
    result = metric.compute()  # the score over all shares on process 0, None on the others

The processes meet in files under `cache_dir` (default: the cache of `evaluate`), which all of them must see, named
after `experiment_id`. All give the same one, and every score a new one: `evaluate` fails where a process begins the
next score under the same name while process 0 still works on the last. A share may be empty, but its process must
still call `compute(predictions=[], references=[])`. A single process can give `keep_in_memory=True` instead.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any

try:
    import datasets
    import evaluate
    import sacrebleu
    from sacrebleu.metrics.bleu import BLEU
except ImportError as error:
    raise ImportError(
        f'hf_autosparse.metrics.bleu needs the package {error.name!r}: pip install "hf-autosparse[translation]"'
    ) from error

if not hasattr(evaluate, "Metric"):
    raise ImportError(
        f"`import evaluate` found {getattr(evaluate, '__file__', evaluate)}, which is not the Hugging Face library of "
        "that name: rename that file or move its folder behind the installed packages on sys.path."
    )


class _CorpusBleu(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """What both metrics share: the features, checked input and the layout of the result.

    `references` holds one string a prediction, or a list of strings where there are several.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=type(self).__doc__,
            citation="Matt Post. 2018. A Call for Clarity in Reporting BLEU Scores. WMT.",
            inputs_description="predictions: list of str. references: list of str, or of lists of str, equally long.",
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Sequence(datasets.Value("string")),
                }
            ),
            reference_urls=["https://aclanthology.org/W18-6319/"],
        )

    def add(self, *, prediction: str, reference: str | Sequence[str]) -> None:
        """Add one prediction with its reference or references."""
        self.add_batch(predictions=[prediction], references=[reference])

    def add_batch(self, *, predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> None:
        """Add predictions with their references.

        Raises:
            ValueError: the two differ in number, or a prediction has no reference.
            TypeError: something other than strings.
        """
        for name, given in (("predictions", predictions), ("references", references)):
            if given is None or isinstance(given, str):
                raise TypeError(f"{name} must be a list with one entry a segment, got {given!r}.")
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predictions but {len(references)} references: they must pair up.")
        references = [[reference] if isinstance(reference, str) else reference for reference in references]
        for index, (prediction, alternatives) in enumerate(zip(predictions, references, strict=True)):
            if alternatives is None or len(alternatives) == 0:
                raise ValueError(f"references[{index}] is {alternatives!r}: give one string or a list of them.")
            for text in (prediction, *alternatives):
                if not isinstance(text, str):
                    raise TypeError(f"segment {index} holds {text!r} ({type(text).__name__}): give strings.")
        super().add_batch(predictions=predictions, references=references)

    def _score(self, bleu: BLEU, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
        if len(predictions) == 0:
            raise ValueError("No predictions to score: BLEU of an empty corpus is not defined.")
        # sacrebleu wants one stream for the first references, one for the second; None where there is no such.
        streams = [list(stream) for stream in itertools.zip_longest(*references)]
        score = bleu.corpus_score(list(predictions), streams)
        return {
            "bleu": score.score,
            "signature": str(bleu.get_signature()),
            "precisions": list(score.precisions),
            "brevity_penalty": score.bp,
            "hypothesis_length": score.sys_len,
            "reference_length": score.ref_len,
        }


class SacreBleu(_CorpusBleu):
    """Corpus BLEU on detokenised text as sacreBLEU defines it (Post 2018): the score to report.

    `compute(predictions=None, references=None, tokenize="13a", lowercase=False)` returns

    - `bleu`: in [0, 100];
    - `signature`: sacreBLEU's own, with its version; a score without it cannot be compared;
    - `precisions`: of 1- to 4-grams, in [0, 100];
    - `brevity_penalty`: in [0, 1];
    - `hypothesis_length`, `reference_length`: in tokens.

    Raises:
        ValueError: for a tokenizer that sacreBLEU does not have, or no predictions at all.
    """

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[str]],
        tokenize: str = "13a",
        lowercase: bool = False,
    ) -> dict[str, Any]:
        if tokenize not in BLEU.TOKENIZERS:
            raise ValueError(f"tokenize={tokenize!r}: sacrebleu {sacrebleu.__version__} has {sorted(BLEU.TOKENIZERS)}.")
        return self._score(BLEU(tokenize=tokenize, lowercase=lowercase), predictions, references)


class CompoundSplitBleu(_CorpusBleu):
    """Tokenised, compound-split BLEU of the early Transformer papers on English-German. For comparison only.

    Vaswani et al. (2017) scored with `utils/get_ende_bleu.sh` of tensor2tensor. Its steps, repeated here on raw text:

    1. Moses `replace-unicode-punctuation.perl`, such as typographic quotes to `"`;
    2. Moses `tokenizer.perl -l de`, here sacremoses, which gave the same tokens on all 21,023 lines compared;
    3. hyphens split off: `perl -ple 's{(\\S)-(\\S)}{$1 ##AT##-##AT## $2}g'`;
    4. Moses `multi-bleu.perl`, case-sensitive: BLEU without smoothing, equal to sacreBLEU's on the same tokens.

    A correct compound so counts as three tokens. That alone is worth 0.3 to 0.6 BLEU (0.34 to 0.46 on four systems of
    WMT 2017), and Moses tokens differ from sacreBLEU's besides: never compare this number with a sacreBLEU one.

    Deviation: the script takes a reference file that its authors had tokenised and whose quotes, the low „ among them,
    they had turned into `"` (https://github.com/tensorflow/tensor2tensor/issues/317), and it leaves „ in the
    hypothesis. Here hypothesis and reference are raw text and both go through all steps, „ included, so that the quotes
    that a system has learnt make no difference. Without „ in the hypothesis the two agree.

    `compute(predictions=None, references=None)` returns what `SacreBleu` does. The signature is sacreBLEU's, for the
    tokens it was given, behind the steps before it and their version.

    Raises:
        ImportError: sacremoses is not installed.
        ValueError: no predictions at all.
    """

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
        tokenize = _CompoundSplitTokenizer()
        # force: no warning that the text looks tokenised, which here it is.
        result = self._score(
            BLEU(tokenize="none", smooth_method="none", force=True),
            [tokenize(prediction) for prediction in predictions],
            [[tokenize(reference) for reference in alternatives] for alternatives in references],
        )
        return result | {"signature": f"pre:{tokenize.signature}|{result['signature']}"}


class _CompoundSplitTokenizer:
    """Steps 1 to 3 of `CompoundSplitBleu`: raw text -> tokens joined by single spaces."""

    def __init__(self) -> None:
        try:
            import sacremoses
        except ImportError as error:
            raise ImportError(
                "CompoundSplitBleu needs the package 'sacremoses': pip install \"hf-autosparse[translation]\""
            ) from error
        self._normalizer = sacremoses.MosesPunctNormalizer(lang="de")
        self._tokenizer = sacremoses.MosesTokenizer(lang="de")
        self.signature = f"unicode-punct+moses-de+atat,sacremoses-{sacremoses.__version__}"

    def __call__(self, text: str) -> str:
        text = self._normalizer.replace_unicode_punct(text).replace("„", '"')
        tokens: str = self._tokenizer.tokenize(text, aggressive_dash_splits=False, escape=True, return_str=True)
        return re.sub(r"(\S)-(\S)", r"\1 ##AT##-##AT## \2", tokens)
