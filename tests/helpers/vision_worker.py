"""Run under torchrun by test_vision_train.py: train tiny models on this process's share; rank 0 saves what it has.

The argument is a JSON list of jobs, [folder, model, changes]: starting processes takes longer than the training.
"""

import json
import sys
from pathlib import Path

import torch

from examples.vision import train as example
from tiny_vision import recording, tiny_recipe

if __name__ == "__main__":
    trainers = recording(example)
    for folder, model, changes in json.loads(sys.argv[1]):
        result = example.train(tiny_recipe(folder, model, *changes))
        if result["process"] == 0:
            trainer = trainers[-1]
            torch.save(trainer.final, f"{folder}/state.pt")
            report = result | {"world": trainer.args.world_size, "rows": trainer.state.log_history}
            Path(folder, "report.json").write_text(json.dumps(report))
