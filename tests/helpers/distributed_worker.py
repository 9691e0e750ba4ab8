"""Run under torchrun by test_distributed.py: train a tiny model on this process's share, save what rank 0 has."""

import json
import sys

import torch

from hf_autosparse import AutoSparseConfig, AutoSparseTrainer, FixedMaskConfig
from tiny import SPARSE, StopAt, history, tiny_arguments, tiny_pairs, tiny_translator

CONFIGS = {
    "autosparse": AutoSparseConfig(**SPARSE, max_layer_sparsity=0.35, threshold_weight_decay=1.0),
    "fixed_mask": FixedMaskConfig(),
}


def run(output_dir: str, batch: int, stop: int | None, resume: bool, method: str = "autosparse") -> AutoSparseTrainer:
    model = tiny_translator()
    if method == "fixed_mask":
        model.model.encoder.layers[0].fc2.weight.data[:, ::2] = 0
    for module in model.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.0  # processes draw different dropout masks
    pairs = tiny_pairs(40)
    if method == "fixed_mask":  # every third example has lost its labels
        for pair in pairs[::3]:
            pair["labels"] = torch.full_like(pair["labels"], -100)
    trainer = AutoSparseTrainer(
        model,
        tiny_arguments(
            output_dir,
            per_device_train_batch_size=batch,
            logging_steps=1,
            max_steps=12,
            learning_rate=0.1,
            optim="sgd",
            save_strategy="steps",
            save_steps=5,
            ddp_find_unused_parameters=False,
        ),
        CONFIGS[method],
        train_dataset=pairs,
        callbacks=[StopAt(stop)] if stop else [],
    )
    trainer.train(resume_from_checkpoint=resume or None)
    return trainer


def record(trainer: AutoSparseTrainer, output: str) -> None:
    trainer.save_model(output + "/final")
    if trainer.is_world_process_zero():
        torch.save(trainer.model.state_dict(), output + "/state.pt")
        with open(output + "/history.json", "w") as file:
            json.dump({"world": trainer.args.world_size, "log": history(trainer)}, file)


if __name__ == "__main__":
    output, batch, stop, resume = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "resume"
    record(run(output, batch, stop or None, resume, method=sys.argv[5]), output)
