"""examples/wmt14/score.py and translate.py: published scores, a tiny model, two processes, bad input."""

import gzip
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import M2M100Config, M2M100ForConditionalGeneration

from examples.wmt14 import score as wmt14_score
from examples.wmt14 import translate as wmt14_translate
from examples.wmt14.tokenizer import train_tokenizer
from paths import ROOT

SOURCES = [
    "a man reads a book",
    "two dogs",
    "the small child plays with two dogs in the park",
    "",
    "a\u0085b\u2028c book",
]
REFERENCES = ["ein Mann liest ein Buch", "zwei Hunde", "das Kind spielt mit zwei Hunden im Park", "x", "ein Buch"]

# System -> compound-split BLEU as the Perl programs of Moses print it.
SYSTEMS = {
    "newstest2017.uedin-nmt.4722.en-de": 28.458900,
    "newstest2017.online-F.0.en-de": 16.442916,
    "newstest2017.LIUM-NMT.4900.en-de": 26.828410,
    "newstest2017.TALP-UPC.4834.en-de": 21.366922,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model of random weights, saved with its tokenizer."""
    tokenizer = train_tokenizer(SOURCES, vocab_size=300)
    torch.manual_seed(0)
    model = M2M100ForConditionalGeneration(
        M2M100Config(
            vocab_size=len(tokenizer),
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            init_std=1.0,  # so that the output depends on the source
            dropout=0.5,  # so that translating in training mode shows
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.eos_token_id,
        )
    )
    model.generation_config.suppress_tokens = list(range(260))  # special tokens and single bytes but </s>, see below
    model.generation_config.suppress_tokens.remove(tokenizer.eos_token_id)
    model.generation_config.min_new_tokens = 4
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    paths = {}
    for name, lines in (("source", SOURCES), ("reference", REFERENCES)):
        paths[name] = str(tmp_path / name)
        Path(paths[name]).write_bytes("".join(f"{line}\n" for line in lines).encode())
    return paths


def run(*arguments, capsys=None):
    """What the command line prints with --json."""
    wmt14_score.main([*map(str, arguments), "--json"])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("system", SYSTEMS)
def test_published_scores(shared_data, system, capsys):
    outputs = shared_data / "wmt17_outputs"
    rows = (outputs / "published_bleu.tsv").read_text().strip().split("\n")
    published = {name: float(bleu) for name, bleu in (row.split("\t") for row in rows)}
    result = run(
        "--hypotheses", outputs / f"{system}.txt", "--reference", outputs / "newstest2017-ref.de", capsys=capsys
    )
    assert result["sentences"] == 3004
    assert result["sacrebleu"]["bleu"] == pytest.approx(published[system], abs=0.01)
    assert result["compound_split_bleu"]["bleu"] == pytest.approx(SYSTEMS[system], abs=1e-6)


def test_table(files, capsys):
    wmt14_score.main(["--hypotheses", files["reference"], "--reference", files["reference"]])
    head, *scores, note = capsys.readouterr().out.strip().split("\n")
    assert head == "5 sentences"
    names = ["sacreBLEU", "chrF2", "tokenised, compound-split BLEU *"]
    for line, name in zip(scores, names, strict=True):
        assert line.startswith(name) and "  100.00  " in line and "version:" in line
    assert note.startswith("*") and note.endswith("not comparable with sacreBLEU")


def test_several_references_and_gzip(files, tmp_path, capsys):
    packed = tmp_path / "other.gz"
    packed.write_bytes(gzip.compress(Path(files["source"]).read_bytes()))
    result = run("--hypotheses", files["source"], "--reference", files["reference"], packed, capsys=capsys)
    assert result["sacrebleu"]["bleu"] == pytest.approx(100)
    assert all("nrefs:2" in result[name]["signature"] for name in ("sacrebleu", "compound_split_bleu", "chrf"))


def test_model_mode_writes_what_it_scores(folder, files, tmp_path, capsys):
    output = tmp_path / "hypotheses.gz"
    sources = ("--source", files["source"], "--reference", files["reference"])
    result = run("--model", folder, *sources, "--output", output, "--batch-size", 2, capsys=capsys)
    assert result["sentences"] == 5
    assert len(set(wmt14_score.read_lines(str(output)))) > 2  # else this test would say little
    again = run("--hypotheses", output, *sources, capsys=capsys)
    assert again == result
    assert run("--hypotheses", output, *sources, "--limit", 2, capsys=capsys)["sentences"] == 2


def test_two_processes_give_the_result_of_one(folder, files, tmp_path, capsys):
    """Also the one test that runs the file as a script, where it must not hide the library `evaluate`."""
    arguments = ["--model", str(folder), "--source", files["source"], "--reference", files["reference"], "--json"]
    arguments += [
        "--num-beams",
        "2",
        "--batch-size",
        "1",
        "--output",
    ]  # the length limit is a batch's: keep batches equal
    wmt14_score.main([*arguments, str(tmp_path / "one")])
    expected = capsys.readouterr().out
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    two = subprocess.run(
        [*launch, "-m", "examples.wmt14.score", *arguments, str(tmp_path / "two")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert two.returncode == 0, two.stderr
    assert two.stdout == expected
    assert (tmp_path / "two").read_bytes() == (tmp_path / "one").read_bytes()


def test_files_of_unequal_length_are_an_error_that_counts_both(files, tmp_path):
    short = tmp_path / "short"
    short.write_text("nur eine Zeile\n")
    with pytest.raises(SystemExit, match=f"number of lines: {short}: 1, {files['reference']}: 5"):
        wmt14_score.main(["--hypotheses", str(short), "--reference", files["reference"]])
    with pytest.raises(SystemExit, match=f"{files['source']}: 5, {short}: 1"):
        wmt14_score.main(["--model", "not loaded", "--source", files["source"], "--reference", str(short)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "m"], "--model needs --source"),
        (["--hypotheses", "h", "--output", "o"], "--output goes with --model"),
        (["--hypotheses", "h", "--limit", "0"], "--limit must be at least 1, got 0"),
        (["--hypotheses", "h", "--model", "m"], "not allowed with"),
        ([], "one of the arguments --model --hypotheses is required"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit):
        wmt14_score.main([*arguments, "--reference", "r"])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("limits", [{}, {"max_tokens_per_batch": 20}, {"batch_size": 2}])
def test_translate_keeps_the_order_and_equals_one_by_one(folder, limits):
    model, tokenizer = wmt14_translate.load(str(folder))
    options = {"num_beams": 2, "max_new_tokens": 8, "progress": False}
    one_by_one = [wmt14_translate.translate(model, tokenizer, [source], **options)[0] for source in SOURCES]
    assert len(set(one_by_one)) > 2
    assert wmt14_translate.translate(model, tokenizer, SOURCES, **options, **limits) == one_by_one


def test_translate_keeps_the_training_mode_and_translates_without_dropout(folder):
    model, tokenizer = wmt14_translate.load(str(folder))
    options = {"num_beams": 1, "max_new_tokens": 8, "progress": False}
    expected = wmt14_translate.translate(model, tokenizer, SOURCES, **options)
    model.train()
    assert wmt14_translate.translate(model, tokenizer, SOURCES, **options) == expected
    assert model.training


def test_translate_stops_at_twice_the_source_plus_ten_tokens(folder):
    model, tokenizer = wmt14_translate.load(str(folder))
    model.generation_config.eos_token_id = None  # never ends by itself
    source_length = len(tokenizer("two dogs")["input_ids"])
    made = []
    model.register_forward_hook(lambda module, inputs, output: made.append(output.logits.shape[1]))
    wmt14_translate.translate(model, tokenizer, ["two dogs"], num_beams=1, progress=False)
    assert sum(made) == 2 * source_length + 10


def test_batches_are_filled_longest_first():
    # 2 x 9 tokens are too many, 2 x 5 fit exactly, and no batch has more than two.
    assert list(wmt14_translate._batches([3, 9, 5, 5, 1, 1], max_tokens=10, max_sentences=2)) == [
        [1],
        [2, 3],
        [0, 4],
        [5],
    ]
    assert list(wmt14_translate._batches([30, 40], max_tokens=10, max_sentences=2)) == [[1], [0]]


@pytest.mark.parametrize("name", ["num_beams", "max_tokens_per_batch", "batch_size", "max_new_tokens"])
def test_translate_refuses_numbers_below_one(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        wmt14_translate.translate(None, None, ["a"], **{name: 0})


def test_translating_nothing():
    assert wmt14_translate.translate(None, None, []) == []


def test_lines_end_with_newline_only():
    assert wmt14_translate.split_lines("a\u0085b\u2028c\x0bd\n\ne\n") == ["a\u0085b\u2028c\x0bd", "", "e"]
    assert wmt14_translate.split_lines("a\nb") == ["a", "b"]
    assert wmt14_translate.split_lines("") == []
    assert wmt14_translate.one_line("a\nb\r\nc\rd\u2028e") == "a b c d\u2028e"


def test_translate_command(folder, capsys, monkeypatch):
    wmt14_translate.main(["--model", str(folder), "two dogs", "a book"])
    from_arguments = capsys.readouterr().out
    assert from_arguments.count("\n") == 2
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"two dogs\na book\n")))
    wmt14_translate.main(["--model", str(folder)])
    assert capsys.readouterr().out == from_arguments
