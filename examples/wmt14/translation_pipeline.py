"""`pipeline("translation", model=folder)`: importing this module brings back the task that transformers 5 dropped.

    from examples.wmt14 import translation_pipeline
    from transformers import pipeline

    translator = pipeline("translation", model="runs/en-de")
    translator("A man reads a book.", num_beams=4)  # [{"translation_text": "..."}]

`TranslationPipeline(model=model, tokenizer=tokenizer)` is the same without the name.
"""

from typing import Any

import torch
import transformers.pipelines
from transformers import AutoModelForSeq2SeqLM, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

TASK = "translation"


class TranslationPipeline(Pipeline):
    """Translates with any sequence-to-sequence model: one string or a list of them.

    Returns `[{"translation_text": str}]` for one string, a list of such dictionaries for a list of strings; with
    `num_return_sequences` > 1, a list of them for each string. `batch_size` works as in every pipeline and all other
    keyword arguments go to `model.generate`. Where neither they nor the model's generation config limit the length, the
    limit is twice the source plus 10 tokens (`generate` alone would stop after 20).
    """

    _load_tokenizer = True
    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False

    def __call__(self, inputs, **kwargs):
        translations = super().__call__(inputs, **kwargs)
        if isinstance(inputs, list) and all(len(alternatives) == 1 for alternatives in translations):
            return [alternatives[0] for alternatives in translations]
        return translations

    def _sanitize_parameters(self, **generate_kwargs) -> tuple[dict, dict, dict]:
        return {}, generate_kwargs, {}

    def preprocess(self, input_: str) -> dict[str, torch.Tensor]:
        if not isinstance(input_, str):
            raise TypeError(f"The translation pipeline takes a string or a list of strings, got {input_!r}.")
        return self.tokenizer(input_, return_token_type_ids=False, return_tensors="pt")

    def _forward(self, input_tensors: dict[str, torch.Tensor], **generate_kwargs) -> dict[str, torch.Tensor]:
        batch, source_length = input_tensors["input_ids"].shape
        config = self.model.generation_config
        limited = {"max_new_tokens", "max_length", "generation_config"} & generate_kwargs.keys()
        if not limited and config.max_new_tokens is None and config.max_length is None:
            generate_kwargs["max_new_tokens"] = 2 * source_length + 10
        output = self.model.generate(**input_tensors, **generate_kwargs)
        return {"output_ids": output.reshape(batch, -1, output.shape[-1])}  # the base class takes batches apart

    def postprocess(self, model_outputs: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
        texts = self.tokenizer.batch_decode(model_outputs["output_ids"][0], skip_special_tokens=True)
        return [{"translation_text": text} for text in texts]


def register_translation_pipeline() -> None:
    """Register `TranslationPipeline` under "translation".

    Transformers up to 5.18 only lack the task, and registering it is enough. From 5.19 `pipeline` refuses the names in
    its table `REMOVED_TASKS` before it looks at the registered ones, so "translation" is taken off that table too.

    Raises:
        RuntimeError: this version of transformers refuses the task all the same; the message names the way round.
    """
    PIPELINE_REGISTRY.supported_tasks.pop(TASK, None)  # registering twice would warn
    PIPELINE_REGISTRY.register_pipeline(
        TASK, pipeline_class=TranslationPipeline, pt_model=AutoModelForSeq2SeqLM, type="text"
    )
    getattr(transformers.pipelines, "REMOVED_TASKS", {}).pop(TASK, None)
    try:
        transformers.pipelines.check_task(TASK)
    except KeyError as error:
        raise RuntimeError(
            f'transformers {transformers.__version__} does not accept the task "{TASK}" even when it is registered; '
            "use TranslationPipeline(model=model, tokenizer=tokenizer) in its place."
        ) from error


register_translation_pipeline()
