import importlib.util
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
sys.path += [str(EXAMPLES / "vision"), str(EXAMPLES / "common")]

# By another name: `train` is the translation example's in the same test run.
specification = importlib.util.spec_from_file_location("vision_train", EXAMPLES / "vision" / "train.py")
sys.modules["vision_train"] = importlib.util.module_from_spec(specification)
specification.loader.exec_module(sys.modules["vision_train"])
