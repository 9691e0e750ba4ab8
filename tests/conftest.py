import os
from pathlib import Path

import pytest
import torch
import transformers

if not torch.cuda.is_available():  # triton reads it when it is first imported
    os.environ["TRITON_INTERPRET"] = "1"

transformers.logging.set_verbosity_warning()


@pytest.fixture(autouse=True)
def same_numbers_every_time() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data that lies beside the repository on the developers' machines."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("needs the real data in ../shared/data, which is not part of the repository")
    return path
