import importlib.util
import sys
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "wmt14"

# At the end of the path: the example's evaluate.py must not hide the evaluate library.
sys.path.append(str(EXAMPLE))

# From its file: the vision example, tested in the same process, has a train.py too.
specification = importlib.util.spec_from_file_location("train", EXAMPLE / "train.py")
sys.modules["train"] = importlib.util.module_from_spec(specification)
specification.loader.exec_module(sys.modules["train"])
