import sys
from pathlib import Path

# At the end of the path: the example's evaluate.py must not hide the evaluate library.
sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "wmt14"))
