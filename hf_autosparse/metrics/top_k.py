"""Top-k accuracy as an `evaluate.Metric` that needs no network and gathers over processes.

    metric = TopKAccuracy(num_process=world_size, process_id=rank, experiment_id="run7")
    metric.add_batch(predictions=ranked_classes(logits, 5), references=labels)  # each process its own share
    result = metric.compute()  # {"top1": ..., "top5": ...} over all shares on process 0, None on the others

What `hf_autosparse.metrics.bleu` says of several processes holds here too.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

try:
    import datasets
    import evaluate
except ImportError as error:
    raise ImportError(
        f'hf_autosparse.metrics.top_k needs the package {error.name!r}: pip install "hf-autosparse[vision]"'
    ) from error


def ranked_classes(logits: Tensor, k: int) -> Tensor:
    """The `k` most likely classes, the most likely first; of equal logits the lower class first.

    Args:
        logits: shape (N, classes), any floating dtype.

    Returns:
        int64 of shape (N, min(k, classes)).
    """
    return logits.argsort(dim=-1, descending=True, stable=True)[:, :k]


class TopKAccuracy(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """The fraction of examples whose class is among the k most likely ones.

    `compute(predictions=None, references=None, k=(1, 5))` returns `{"top1": ..., "top5": ...}`, each in [0, 1].
    `predictions` are ranked classes as `ranked_classes` gives them, shape (N, K), and `references` the N true classes.
    A k above K is allowed only where K is the number of all classes, so that the answer is 1; the metric cannot know
    and takes the caller's word.

    Raises:
        ValueError: predictions and references differ in number, none at all, or a k below 1.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=type(self).__doc__,
            citation="Russakovsky et al. 2015. ImageNet Large Scale Visual Recognition Challenge. IJCV.",
            inputs_description="predictions: (N, K) ranked classes. references: (N,) classes.",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("int64")), "references": datasets.Value("int64")}
            ),
            reference_urls=["https://arxiv.org/abs/1409.0575"],
        )

    def add_batch(self, *, predictions: Any, references: Any) -> None:
        """Add ranked predictions with their classes: arrays, tensors or nested lists.

        Raises:
            ValueError: predictions are not of shape (N, K) with K >= 1, or references not of shape (N,).
        """
        predictions, references = _integers(predictions), _integers(references)
        if predictions.size == 0 and references.size == 0:
            predictions = predictions.reshape(0, 1)
        if predictions.ndim != 2 or references.shape != predictions.shape[:1] or predictions.shape[1] == 0:
            raise ValueError(
                f"predictions of shape {predictions.shape} and references of shape {references.shape}: expected (N, K)"
                " ranked classes, see ranked_classes, and (N,) classes"
            )
        super().add_batch(predictions=predictions, references=references)

    def _compute(
        self, predictions: Sequence[Sequence[int]], references: Sequence[int], k: Sequence[int] = (1, 5)
    ) -> dict[str, float]:
        if len(references) == 0:
            raise ValueError("No predictions to score: the accuracy of nothing is not defined.")
        if any(number < 1 for number in k):
            raise ValueError(f"k={tuple(k)}: each must be at least 1.")
        hits = np.asarray(predictions) == np.asarray(references)[:, None]
        return {f"top{number}": float(hits[:, :number].any(axis=1).mean()) for number in k}


def _integers(values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"classes must be integers, got {array.dtype}: give ranked_classes(logits, k), not logits")
    return array.astype(np.int64)
