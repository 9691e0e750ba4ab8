"""Batches by token count: the sampler, the collator and the Trainer mixin that uses them.

Translation batches are measured in padded tokens, not in sentences (Ott et al. 2018, fairseq's `--max-tokens`): a batch
of B sentences costs B * max(longest source, longest target). The paper's recipe is 10,240 tokens a process.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader
from torch.utils.data import DataLoader, Sampler

IGNORED_LABEL = -100  # the label that torch's cross entropy skips
MIXING_WIDTH = 4.0  # tokens; see TokenBatchSampler


class TokenBatchSampler(Sampler[list[int]]):
    """Yields lists of sentence indices with `len(batch) * max(longest source, longest target) <= max_tokens`.

    The *size* of a sentence is `max(source length, target length)`. Sentences are ordered by size and that order is cut
    greedily into batches. The cuts depend on the sorted sizes alone, so the number of batches is the same in every
    epoch, whatever the order among sentences of equal size; Trainer counts its steps once and resuming relies on it.

    Each epoch draws, from `(seed, epoch)` only,
    - the order among equal sizes: by `source length - target length` plus noise of up to `MIXING_WIDTH` tokens, which
      gives every epoch other batches while the shorter side is padded by a few tokens at most;
    - the order of the batches.

    The number of batches is a multiple of `num_processes`, so that dealing them out in turn gives every process equally
    many. Where it is not by itself, the batch with the most sentences (the first of them) is halved, and so on until
    the number fits: no sentence is dropped, none repeated, each is seen exactly once an epoch.

    Args:
        source_lengths, target_lengths: tokens of each sentence, integer arrays of shape (N,), all >= 1.
        max_tokens: most padded tokens in a batch, counted on the longer side.
        seed: of the order.
        shuffle: False keeps batches in order of size, equal in all epochs.
        num_processes: what the number of batches must divide by.
        max_sentences: most sentences in a batch; None for no such limit.

    Raises:
        ValueError: for arguments out of range, and for a sentence longer than `max_tokens` (with index and length).
    """

    def __init__(
        self,
        source_lengths: Sequence[int] | np.ndarray,
        target_lengths: Sequence[int] | np.ndarray,
        max_tokens: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        num_processes: int = 1,
        max_sentences: int | None = None,
    ):
        _check_at_least_one(max_tokens=max_tokens, num_processes=num_processes)
        if max_sentences is not None:
            _check_at_least_one(max_sentences=max_sentences)
        source = _lengths("source_lengths", source_lengths)
        target = _lengths("target_lengths", target_lengths)
        if len(source) != len(target):
            raise ValueError(
                f"source_lengths has {len(source)} entries and target_lengths {len(target)}; "
                "both must describe the same sentences."
            )
        self.seed, self.shuffle, self.epoch = seed, shuffle, 0
        self._size = np.maximum(source, target)
        self._difference = source - target
        longest = int(self._size.argmax())
        if self._size[longest] > max_tokens:
            raise ValueError(
                f"sentence {longest} has {self._size[longest]} tokens, more than max_tokens={max_tokens}; "
                "raise max_tokens or drop sentences of that length."
            )
        cuts = _cut(np.sort(self._size), max_tokens, max_sentences)
        self._spans = _split_to_multiple(cuts, num_processes)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._spans)

    def __iter__(self) -> Iterator[list[int]]:
        # As numbers, not as a list of lists: 4.5 M sentences stay a 36 MB array.
        spans, difference = np.asarray(self._spans), self._difference
        if self.shuffle:
            generator = np.random.default_rng((self.seed, self.epoch))
            difference = difference + generator.uniform(0.0, MIXING_WIDTH, size=len(difference))
            spans = generator.permutation(spans)
        order = np.lexsort((difference, self._size))
        for start, stop in spans.tolist():
            yield order[start:stop].tolist()


def _cut(sizes: np.ndarray, max_tokens: int, max_sentences: int | None) -> list[tuple[int, int]]:
    """Greedy spans `(start, stop)` of the ascending `sizes`, each as long as the limits allow."""
    spans, start = [], 0
    while start < len(sizes):
        # No batch that begins here can hold more than this; inside, its cost grows with every sentence.
        limit = min(len(sizes), start + max_tokens // int(sizes[start]))
        if max_sentences is not None:
            limit = min(limit, start + max_sentences)
        count = bisect.bisect_right(
            range(limit - start), max_tokens, key=lambda i, start=start: (i + 1) * int(sizes[start + i])
        )
        spans.append((start, start + count))
        start += count
    return spans


def _split_to_multiple(spans: list[tuple[int, int]], multiple: int) -> list[tuple[int, int]]:
    """Halve the spans with most sentences until the number of spans divides by `multiple`; sorted."""
    heap = [(start - stop, start, stop) for start, stop in spans]
    heapq.heapify(heap)
    while len(heap) % multiple:
        negative_count, start, stop = heap[0]
        if negative_count == -1:
            raise ValueError(
                f"{len(heap)} sentences cannot be dealt out to num_processes={multiple} processes in equal numbers of "
                "batches; use more data or fewer processes."
            )
        middle = (start + stop + 1) // 2
        heapq.heapreplace(heap, (start - middle, start, middle))
        heapq.heappush(heap, (middle - stop, middle, stop))
    return sorted((start, stop) for _, start, stop in heap)


def _lengths(name: str, values: Sequence[int] | np.ndarray) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or len(array) == 0 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"{name} must be a non-empty 1-D array of integers, got shape {array.shape} and type {array.dtype}."
        )
    shortest = int(array.argmin())
    if array[shortest] < 1:
        raise ValueError(f"{name}[{shortest}] is {array[shortest]}; every sentence needs at least 1 token.")
    return array.astype(np.int64)


def _check_at_least_one(**arguments: int) -> None:
    for name, value in arguments.items():
        if not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")


class Seq2SeqCollator:
    """Pads `{"input_ids", "labels"}` lists to one batch of tensors.

    Returns int64 tensors: `input_ids` and `attention_mask` of shape (B, S), `labels` (padded with -100) and
    `decoder_input_ids` (the labels moved right by one behind `decoder_start_token_id`, padded with `pad_token_id`)
    of shape (B, T). Trainer's label smoothing takes the labels away before the model runs, so the model cannot derive
    `decoder_input_ids` itself.

    Args:
        pad_token_id: padding of both inputs.
        decoder_start_token_id: what the decoder reads first (for a model: `model.config.decoder_start_token_id`).
        pad_to_multiple_of: round S and T up, e.g. to 8 for tensor cores. The token budget of `TokenBatchSampler` counts
            before this rounding.
    """

    def __init__(self, pad_token_id: int, decoder_start_token_id: int, pad_to_multiple_of: int | None = None):
        for name, value in {"pad_token_id": pad_token_id, "decoder_start_token_id": decoder_start_token_id}.items():
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} must be a token id >= 0, got {value!r}; set it in the model's config.")
        if pad_to_multiple_of is not None:
            _check_at_least_one(pad_to_multiple_of=pad_to_multiple_of)
        self.pad_token_id = pad_token_id
        self.decoder_start_token_id = decoder_start_token_id
        self.pad_to_multiple_of = pad_to_multiple_of

    def __call__(self, features: Sequence[dict[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
        sources = [feature["input_ids"] for feature in features]
        targets = [feature["labels"] for feature in features]
        shifted = [[self.decoder_start_token_id, *target[:-1]] for target in targets]
        return {
            "input_ids": self._pad(sources, self.pad_token_id),
            "attention_mask": self._pad([[1] * len(source) for source in sources], 0),
            "decoder_input_ids": self._pad(shifted, self.pad_token_id),
            "labels": self._pad(targets, IGNORED_LABEL),
        }

    def _pad(self, rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
        width = max(len(row) for row in rows)
        multiple = self.pad_to_multiple_of or 1
        width = -(-width // multiple) * multiple
        return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], dtype=torch.int64)


class ProcessShard(BatchSamplerShard):
    """One process's batches of a `TokenBatchSampler`: every `num_processes`-th, beginning with `process_index`.

    Accelerate's own shard has no `set_epoch`. After a resume in the middle of an epoch the loader holds
    skip(shard(sampler)), and Trainer's `set_epoch` reaches only the second of these three, so that the sampler would
    replay epoch 0. This shard hands the epoch on.
    """

    def __init__(self, batch_sampler: TokenBatchSampler, num_processes: int, process_index: int):
        super().__init__(batch_sampler, num_processes=num_processes, process_index=process_index, even_batches=False)

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


class TokenBatchMixin:
    """Gives any transformers `Trainer` training batches of at most `max_tokens` padded tokens per process.

        class TokenBatchTrainer(TokenBatchMixin, Seq2SeqTrainer): ...

    `train_dataset` must have `source_lengths` and `target_lengths` (as `TokenizedPairs` has). Replaces
    `per_device_train_batch_size` and `train_sampling_strategy`; evaluation loaders stay Trainer's own. The order
    follows `args.data_seed`, else `args.seed`.

    Args:
        max_tokens: see `TokenBatchSampler`; per process and per micro-batch, so one optimizer step sees up to
            `max_tokens * num_processes * gradient_accumulation_steps`.
        max_sentences: most sentences in a batch; None for no such limit.
    """

    def __init__(self, *args, max_tokens: int, max_sentences: int | None = None, **kwargs):
        _check_at_least_one(max_tokens=max_tokens)
        self.max_tokens = max_tokens
        self.max_sentences = max_sentences
        super().__init__(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        dataset = self.train_dataset
        if not (hasattr(dataset, "source_lengths") and hasattr(dataset, "target_lengths")):
            raise ValueError(
                f"train_dataset is a {type(dataset).__name__} without source_lengths and target_lengths, which "
                "batching by tokens needs; use TokenizedPairs."
            )
        args, accelerator = self.args, self.accelerator
        sampler = TokenBatchSampler(
            dataset.source_lengths,
            dataset.target_lengths,
            self.max_tokens,
            seed=args.seed if args.data_seed is None else args.data_seed,
            num_processes=accelerator.num_processes,
            max_sentences=self.max_sentences,
        )
        loader = DataLoader(
            dataset,
            batch_sampler=ProcessShard(sampler, accelerator.num_processes, accelerator.process_index),
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )
        # The batches are already this process's own: accelerate must not deal them out a second time.
        return prepare_data_loader(
            loader,
            device=accelerator.device,
            num_processes=1,
            process_index=0,
            put_on_device=accelerator.device_placement,
            rng_types=None,
            even_batches=False,
            non_blocking=accelerator.non_blocking,
        )
