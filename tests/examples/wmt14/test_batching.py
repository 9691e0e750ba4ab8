"""Token batches: limits, counts, order, and the same batches after a resume in one and in two processes.

Run as a script this file is one process of the two-process test: `test_batching.py FOLDER`.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from transformers import (
    M2M100Config,
    M2M100ForConditionalGeneration,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    set_seed,
)

from examples.wmt14.batching import ProcessShard, Seq2SeqCollator, TokenBatchMixin, TokenBatchSampler
from paths import PYTHONPATH

PAD, START, FIRST_ID, MAX_TOKENS = 1, 2, 100, 40


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other on a busy machine make tiny models a hundred times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- sampler


def lengths(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    source = generator.integers(1, 60, count)
    return source, np.clip(source + generator.integers(-9, 12, count), 1, 64)


def cost(batch, source, target) -> int:
    return len(batch) * max(source[batch].max(), target[batch].max())


def test_batches_worked_by_hand():
    # Sizes 3 4 2 5, in order: 2 (sentence 2), 3 (0), 4 (1), 5 (3). 2 * 3 <= 8 < 3 * 4; 1 * 4 <= 8 < 2 * 5.
    source, target = [3, 1, 2, 5], [2, 4, 2, 5]
    assert list(TokenBatchSampler(source, target, 8, shuffle=False)) == [[2, 0], [1], [3]]
    # Three batches for two processes: the one with most sentences is halved.
    assert list(TokenBatchSampler(source, target, 8, shuffle=False, num_processes=2)) == [[2], [0], [1], [3]]
    assert list(TokenBatchSampler(source, target, 20, shuffle=False)) == [[2, 0, 1, 3]]  # 4 * 5 fits exactly
    assert list(TokenBatchSampler(source, target, 19, shuffle=False)) == [[2, 0, 1], [3]]
    assert list(TokenBatchSampler(source, target, 20, shuffle=False, max_sentences=2)) == [[2, 0], [1, 3]]


@pytest.mark.parametrize("num_processes", [1, 2, 3, 8])
@pytest.mark.parametrize(("count", "max_tokens", "max_sentences"), [(1000, 256, None), (1000, 64, 3), (9, 64, None)])
def test_every_epoch(count, max_tokens, max_sentences, num_processes):
    source, target = lengths(count)
    sampler = TokenBatchSampler(
        source, target, max_tokens, num_processes=num_processes, max_sentences=max_sentences, seed=3
    )
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler) and len(sampler) % num_processes == 0
        assert sorted(i for batch in batches for i in batch) == list(range(count))
        assert max(cost(batch, source, target) for batch in batches) <= max_tokens
        assert max_sentences is None or max(map(len, batches)) <= max_sentences
        epochs.append(batches)
    assert epochs[0] != epochs[1] != epochs[2]
    sampler.set_epoch(1)
    assert list(sampler) == epochs[1]


def test_epochs_mix_the_sentences_and_batches_stay_tight():
    source, target = lengths(5000)
    sampler = TokenBatchSampler(source, target, 2048)
    first = {tuple(sorted(batch)) for batch in sampler}
    sampler.set_epoch(1)
    second = list(sampler)
    assert len(first & {tuple(sorted(batch)) for batch in second}) < 0.1 * len(second)
    padded = sum(len(batch) * (source[batch].max() + target[batch].max()) for batch in second)
    assert (source.sum() + target.sum()) / padded > 0.9
    assert np.mean([cost(batch, source, target) for batch in second]) > 0.95 * 2048


def test_order_depends_on_the_seed_alone():
    source, target = lengths(300)
    assert list(TokenBatchSampler(source, target, 128, seed=1)) == list(TokenBatchSampler(source, target, 128, seed=1))
    assert list(TokenBatchSampler(source, target, 128, seed=1)) != list(TokenBatchSampler(source, target, 128, seed=2))
    still = TokenBatchSampler(source, target, 128, shuffle=False)
    first = list(still)
    still.set_epoch(5)
    assert list(still) == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([3, 9], [4, 2], 8), "sentence 1 has 9 tokens, more than max_tokens=8"),
        (([3, 2], [4, 9], 8), "sentence 1 has 9 tokens, more than max_tokens=8"),
        (([3], [4, 2], 8), "source_lengths has 1 entries and target_lengths 2"),
        (([3, 0], [4, 2], 8), r"source_lengths\[1\] is 0; every sentence needs at least 1 token"),
        (([], [], 8), r"source_lengths must be a non-empty 1-D array of integers, got shape \(0,\)"),
        (([1.5], [2], 8), "source_lengths must be .* type float64"),
        (([1], [2], 0), "max_tokens must be an integer of at least 1, got 0"),
    ],
)
def test_sampler_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        TokenBatchSampler(*arguments)


def test_too_many_processes():
    with pytest.raises(ValueError, match="3 sentences cannot be dealt out to num_processes=4 processes"):
        TokenBatchSampler([1, 2, 3], [1, 2, 3], 8, num_processes=4)
    with pytest.raises(ValueError, match="max_sentences must be an integer of at least 1, got 0"):
        TokenBatchSampler([1], [1], 8, max_sentences=0)


def test_shards_are_equal_parts_and_pass_the_epoch_on():
    source, target = lengths(200)
    sampler = TokenBatchSampler(source, target, 128, num_processes=3)
    shards = [ProcessShard(sampler, 3, index) for index in range(3)]
    shards[0].set_epoch(4)
    assert sampler.epoch == 4
    assert [list(shard) for shard in shards] == [list(sampler)[index::3] for index in range(3)]
    assert len({len(shard) for shard in shards}) == 1


# ---- collator


def test_collator_worked_by_hand():
    features = [{"input_ids": [5, 6, 2], "labels": [7, 2]}, {"input_ids": [8, 2], "labels": [9, 4, 3, 2]}]
    batch = Seq2SeqCollator(pad_token_id=PAD, decoder_start_token_id=START)(features)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 2], [8, 2, 1]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "decoder_input_ids": [[2, 7, 1, 1], [2, 9, 4, 3]],
        "labels": [[7, 2, -100, -100], [9, 4, 3, 2]],
    }
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    rounded = Seq2SeqCollator(PAD, START, pad_to_multiple_of=8)(features)
    assert all(tensor.shape == (2, 8) for tensor in rounded.values())


def test_collator_gives_what_the_model_would_make_itself():
    features = [{"input_ids": [5, 2], "labels": [7, 8, 2]}, {"input_ids": [8, 2], "labels": [9, 2]}]
    batch = Seq2SeqCollator(PAD, START)(features)
    model = tiny_model().eval()
    derived = model(**{name: tensor for name, tensor in batch.items() if name != "decoder_input_ids"})
    assert torch.equal(model(**batch).logits[0], derived.logits[0])
    assert torch.equal(model(**batch).loss, derived.loss)  # the padded position does not count


def test_collator_errors():
    with pytest.raises(ValueError, match="decoder_start_token_id must be a token id >= 0, got None"):
        Seq2SeqCollator(1, None)
    with pytest.raises(ValueError, match="pad_to_multiple_of must be an integer of at least 1, got 0"):
        Seq2SeqCollator(1, 2, pad_to_multiple_of=0)


# ---- with Trainer


class Sentences(torch.utils.data.Dataset):
    """60 sentences; the first token of number i is FIRST_ID + i."""

    def __init__(self):
        generator = np.random.default_rng(0)
        self.source_lengths, self.target_lengths = generator.integers(2, 9, 60), generator.integers(2, 9, 60)

    def __len__(self) -> int:
        return 60

    def __getitem__(self, i: int) -> dict[str, list[int]]:
        source, target = int(self.source_lengths[i]), int(self.target_lengths[i])
        return {"input_ids": [FIRST_ID + i] + [5] * (source - 1), "labels": [FIRST_ID + i] + [6] * (target - 1)}


class RecordingTrainer(TokenBatchMixin, Seq2SeqTrainer):
    """Notes the sentences of each training batch."""

    def __init__(self, *args, **kwargs):
        self.batches: list[list[int]] = []
        super().__init__(*args, **kwargs)

    def training_step(self, model, inputs, *args, **kwargs):
        self.batches.append((inputs["input_ids"][:, 0] - FIRST_ID).tolist())
        return super().training_step(model, inputs, *args, **kwargs)


class StopAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_training_stop or state.global_step == self.step
        control.should_save = control.should_save or state.global_step == self.step


def tiny_model() -> M2M100ForConditionalGeneration:
    set_seed(0)
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    widths = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 32}
    return M2M100ForConditionalGeneration(
        M2M100Config(vocab_size=200, pad_token_id=PAD, decoder_start_token_id=START, dropout=0.0, **sizes, **widths)
    )


def make_trainer(folder: Path, train_dataset=None, callbacks=(), **settings) -> RecordingTrainer:
    arguments = Seq2SeqTrainingArguments(
        str(folder),
        **{"num_train_epochs": 2, "save_strategy": "no", "use_cpu": True, "report_to": "none", "disable_tqdm": True,
           "label_smoothing_factor": 0.1, "per_device_eval_batch_size": 7, "seed": 5, **settings},
    )  # fmt: skip
    dataset = train_dataset or Sentences()
    collator = Seq2SeqCollator(PAD, START)
    return RecordingTrainer(
        tiny_model(), arguments, max_tokens=MAX_TOKENS, data_collator=collator, train_dataset=dataset,
        eval_dataset=dataset, callbacks=list(callbacks),
    )  # fmt: skip


def run_whole_and_resumed(folder: Path, **settings) -> dict:
    """Two epochs at a stretch, and again with a stop in the middle of the second one."""
    whole = make_trainer(folder / "whole", **settings)
    whole.train()
    stop = whole.state.max_steps * 3 // 4
    stopped = make_trainer(folder / "cut", callbacks=[StopAt(stop)], **settings)
    stopped.train()
    resumed = make_trainer(folder / "cut", **settings)
    resumed.train(resume_from_checkpoint=True)
    return {
        "whole": whole.batches,
        "stopped": stopped.batches,
        "resumed": resumed.batches,
        "weights_equal": all(
            torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
        ),
    }


def expected_batches(num_processes: int, epoch: int) -> list[list[int]]:
    dataset = Sentences()
    sampler = TokenBatchSampler(
        dataset.source_lengths, dataset.target_lengths, MAX_TOKENS, seed=5, num_processes=num_processes
    )
    sampler.set_epoch(epoch)
    return list(sampler)


@pytest.mark.parametrize(
    "settings", [{}, {"gradient_accumulation_steps": 2, "dataloader_num_workers": 1}], ids=["plain", "accumulated"]
)
def test_resume_in_the_middle_of_an_epoch_replays_the_rest(tmp_path, settings):
    seen = run_whole_and_resumed(tmp_path, **settings)
    assert seen["whole"] == expected_batches(1, epoch=0) + expected_batches(1, epoch=1)
    assert len(seen["whole"]) / 2 < len(seen["stopped"]) < len(seen["whole"])
    assert seen["stopped"] + seen["resumed"] == seen["whole"]
    assert seen["weights_equal"]


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18"),
    reason="Trainer of transformers 5.17 loads the optimizer of several CPU processes to 'cpu:0', which torch refuses",
)
def test_two_processes_share_the_batches_and_resume(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    environment = os.environ | settings | {"PYTHONPATH": PYTHONPATH}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)[-3000:]
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    both_epochs = expected_batches(2, epoch=0) + expected_batches(2, epoch=1)
    for rank in range(2):
        assert seen[rank]["whole"] == both_epochs[rank::2]
        assert len(seen[rank]["whole"]) / 2 < len(seen[rank]["stopped"]) < len(seen[rank]["whole"])
        assert seen[rank]["stopped"] + seen[rank]["resumed"] == seen[rank]["whole"]
        assert seen[rank]["weights_equal"]
    per_epoch = len(seen[0]["whole"]) // 2
    sentences = [i for rank in range(2) for batch in seen[rank]["whole"][:per_epoch] for i in batch]
    assert sorted(sentences) == list(range(60))


def test_loaders(tmp_path):
    trainer = make_trainer(tmp_path, data_seed=9)
    loader = trainer.get_train_dataloader()
    assert loader.batch_sampler.batch_sampler.seed == 9
    assert len(loader) == len(list(loader)) == len(expected_batches(1, 0))
    sizes = {len(batch["input_ids"]) for batch in trainer.get_eval_dataloader()}
    assert sizes == {7, 60 % 7}  # Trainer's own


def test_trainer_errors(tmp_path):
    trainer = make_trainer(tmp_path, train_dataset=[{"input_ids": [5, 2], "labels": [6, 2]}])
    with pytest.raises(ValueError, match="train_dataset is a list without source_lengths and target_lengths"):
        trainer.train()
    with pytest.raises(ValueError, match="max_tokens must be an integer of at least 1, got None"):
        RecordingTrainer(tiny_model(), max_tokens=None)


if __name__ == "__main__":
    output = Path(sys.argv[1])
    torch.set_num_threads(1)
    report = run_whole_and_resumed(output)
    (output / f"{os.environ['RANK']}.json").write_text(json.dumps(report))
    torch.distributed.destroy_process_group()
