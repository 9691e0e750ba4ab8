"""BLEU: golden values worked by hand, Moses' own output, several processes, bad input."""

import importlib
import math
import multiprocessing
import sys
import types

import pytest
import sacrebleu

from hf_autosparse.metrics.bleu import CompoundSplitBleu, SacreBleu, _CompoundSplitTokenizer

METRICS = [SacreBleu, CompoundSplitBleu]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The files in which metrics meet stay in the test's own folder."""
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", str(tmp_path))


def score(metric, predictions, references, **options) -> dict:
    return metric(keep_in_memory=True).compute(predictions=predictions, references=references, **options)


@pytest.mark.parametrize("metric", METRICS)
def test_golden_values(metric):
    perfect = score(metric, ["a b c d e"], ["a b c d e"])
    assert perfect["bleu"] == pytest.approx(100) and perfect["precisions"] == [100] * 4

    # Matches of 1- to 4-grams: 5/6 ("the" counts once), 3/5, 2/4, 1/3; their product is 1/12.
    result = score(metric, ["the cat sat on the mat"], ["the cat sat on a mat"])
    assert result["bleu"] == pytest.approx(100 * (1 / 12) ** 0.25)
    assert result["precisions"] == pytest.approx([100 * 5 / 6, 60, 50, 100 / 3])

    # Every n-gram right, but 4 words in place of 6: the brevity penalty is exp(1 - 6/4).
    short = score(metric, ["a b c d"], ["a b c d e f"])
    assert short["bleu"] == pytest.approx(100 * math.exp(-0.5))
    assert short["brevity_penalty"] == pytest.approx(math.exp(-0.5))
    assert (short["hypothesis_length"], short["reference_length"]) == (4, 6)


@pytest.mark.parametrize("metric", METRICS)
def test_n_grams_are_counted_over_the_corpus(metric):
    # 1-grams 4/4 + 2/4, 2-grams 3/3 + 1/3, 3-grams 2/2 + 0/2, 4-grams 1/1 + 0/1: 3/4 * 2/3 * 1/2 * 1/2 = 1/8.
    result = score(metric, ["a b c d", "e f x y"], ["a b c d", "e f g h"])
    assert result["bleu"] == pytest.approx(100 * (1 / 8) ** 0.25)


def test_smoothing():
    # 3/4, 2/3, 1/2 and no 4-gram of one: sacreBLEU counts half of one, which makes 1/8; multi-bleu.perl gives 0.
    pair = (["a b c x"], ["a b c d"])
    assert score(SacreBleu, *pair)["bleu"] == pytest.approx(100 * (1 / 8) ** 0.25)
    assert score(CompoundSplitBleu, *pair)["bleu"] == 0


@pytest.mark.parametrize("metric", METRICS)
def test_several_references(metric):
    # Of the lengths 3 and 5, equally close to 4, the shorter counts; a segment may have fewer references than others.
    predictions, references = ["a b c d", "e f g h"], [["a b c", "a b c d x"], ["e f g h"]]
    result = score(metric, predictions, references)
    assert result["bleu"] == pytest.approx(100)
    assert result["reference_length"] == 3 + 4
    assert "nrefs:var" in result["signature"]
    one_by_one = metric(keep_in_memory=True)
    for prediction, reference in zip(predictions, references, strict=True):
        one_by_one.add(prediction=prediction, reference=reference)
    assert one_by_one.compute() == result


def test_signatures():
    pair = (["a b c d"], ["a b c d"])
    version = f"version:{sacrebleu.__version__}"
    assert score(SacreBleu, *pair)["signature"] == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|{version}"
    lowered = score(SacreBleu, ["A b c d"], ["a B c d"], tokenize="intl", lowercase=True)
    assert lowered["bleu"] == pytest.approx(100)
    assert lowered["signature"] == f"nrefs:1|case:lc|eff:no|tok:intl|smooth:exp|{version}"
    split = score(CompoundSplitBleu, *pair)["signature"]
    assert split.startswith("pre:unicode-punct+moses-de+atat,sacremoses-")
    assert split.endswith(f"|nrefs:1|case:mixed|eff:no|tok:none|smooth:none|{version}")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        # The right column was printed by the Perl programs of Moses.
        (
            "Dr. Müller las „rich-text“-Formate, z. B. Science-Fiction.",
            "Dr. Müller las &quot; rich ##AT##-##AT## text &quot; -Formate , z. B. Science ##AT##-##AT## Fiction .",
        ),
        (
            "Im Jahr 1990 kosteten 3,5 Mio. Bücher 1.000,50 €, sagt's Heinz & Co. <b>",
            "Im Jahr 1990 kosteten 3,5 Mio. Bücher 1.000,50 € , sagt &apos; s Heinz &amp; Co. &lt; b &gt;",
        ),
        ("a-b-c ist das A-und-O…", "a ##AT##-##AT## b-c ist das A ##AT##-##AT## und ##AT##-##AT## O ..."),
        ('[Er|sie] sagte: "Na ja ..."', "&#91; Er &#124; sie &#93; sagte : &quot; Na ja ... &quot;"),
        ("eins\u0085zwei\u2028drei", "eins zwei drei"),
        ("", ""),
    ],
)
def test_compound_split_tokens_are_those_of_moses(text, tokens):
    assert _CompoundSplitTokenizer()(text) == tokens


def test_split_compounds_count_as_three_tokens():
    # "rich ##AT##-##AT## text format here": 4/5, 3/4, 2/3, 1/2, product 1/5. Unsplit there would be no 4-gram at all.
    pair = (["rich-text format here"], ["rich-text format there"])
    assert score(CompoundSplitBleu, *pair)["bleu"] == pytest.approx(100 * (1 / 5) ** 0.25)
    assert score(SacreBleu, *pair)["bleu"] == 0


def test_quotes_make_no_difference_to_compound_split_bleu():
    pair = (['"Ja", sagte er.'], ["„Ja“, sagte er."])
    assert score(CompoundSplitBleu, *pair)["bleu"] == pytest.approx(100)
    assert score(SacreBleu, *pair)["bleu"] < 100


# Characters at which str.splitlines would cut, an empty segment, and one with several references.
PREDICTIONS = [
    "Das ist gut .",
    "Ein \u0085 Hund \u2028 im Park",
    "",
    "Zwei-drei Wörter mehr",
    "noch ein Satz",
    "Ende .",
]
REFERENCES = [
    ["Das ist gut ."],
    ["Ein \u0085 Hund \u2028 im Wald"],
    ["fehlt"],
    ["Zwei-drei Wörter", "x"],
    ["noch"],
    ["."],
]


def share_of_a_process(metric, rank: int, cuts: list[slice], cache: str) -> list[dict | None]:
    """Runs in a process of its own: one score for each cut between the two shares."""
    results = []
    for number, cut in enumerate(cuts):
        gathering = metric(num_process=2, process_id=rank, experiment_id=f"cut{number}", cache_dir=cache)
        share = slice(0, cut) if rank == 0 else slice(cut, None)
        results.append(gathering.compute(predictions=PREDICTIONS[share], references=REFERENCES[share]))
    return results


@pytest.fixture(scope="module")
def two_processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hf_autosparse.metrics.bleu"])  # imported once for both
    with context.Pool(2) as pool:
        yield pool


@pytest.mark.parametrize("metric", METRICS)
def test_two_processes_with_uneven_shares_give_the_score_of_one(metric, two_processes, tmp_path):
    cuts = [4, 1, 0, len(PREDICTIONS)]  # the last two leave one process nothing
    calls = [(metric, rank, cuts, str(tmp_path)) for rank in (0, 1)]
    first, second = two_processes.starmap(share_of_a_process, calls, chunksize=1)
    expected = score(metric, PREDICTIONS, REFERENCES)
    assert 0 < expected["bleu"] < 100
    assert first == [expected] * len(cuts)
    assert second == [None] * len(cuts)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("predictions", "references", "error", "message"),
    [
        (["a"], ["a", "b"], ValueError, "1 predictions but 2 references"),
        (["a"], None, TypeError, "references must be a list .* got None"),
        ("a", ["a"], TypeError, "predictions must be a list .* got 'a'"),
        (["a", 3], ["a", "b"], TypeError, r"segment 1 holds 3 \(int\)"),
        (["a"], [["b", None]], TypeError, r"segment 0 holds None \(NoneType\)"),
        (["a"], [[]], ValueError, r"references\[0\] is \[\]"),
        (["a"], [None], ValueError, r"references\[0\] is None"),
        ([], [], ValueError, "No predictions to score"),
    ],
)
def test_bad_input(metric, predictions, references, error, message):
    with pytest.raises(error, match=message):
        score(metric, predictions, references)


def test_unknown_tokenizer():
    with pytest.raises(ValueError, match="tokenize='14a': sacrebleu .* has .*'13a'"):
        score(SacreBleu, ["a"], ["a"], tokenize="14a")


@pytest.mark.parametrize("package", ["evaluate", "sacrebleu", "datasets"])
def test_missing_package_names_the_extra(monkeypatch, package):
    monkeypatch.delitem(sys.modules, "hf_autosparse.metrics.bleu")
    monkeypatch.setitem(sys.modules, package, None)  # what Python takes as not installed
    with pytest.raises(ImportError, match=rf"'{package}': pip install \"hf-autosparse\[translation\]\""):
        importlib.import_module("hf_autosparse.metrics.bleu")


def test_missing_sacremoses_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacremoses", None)
    with pytest.raises(ImportError, match=r"'sacremoses': pip install \"hf-autosparse\[translation\]\""):
        score(CompoundSplitBleu, ["a"], ["a"])


def test_a_file_that_hides_the_library_evaluate_is_named(monkeypatch):
    stranger = types.ModuleType("evaluate")
    stranger.__file__ = "somewhere/evaluate.py"
    monkeypatch.delitem(sys.modules, "hf_autosparse.metrics.bleu")
    monkeypatch.setitem(sys.modules, "evaluate", stranger)
    with pytest.raises(ImportError, match="found somewhere/evaluate.py, which is not the Hugging Face library"):
        importlib.import_module("hf_autosparse.metrics.bleu")
