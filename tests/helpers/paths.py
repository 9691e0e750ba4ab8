"""Where things lie, for tests that start programs."""

import os
from pathlib import Path

HELPERS = Path(__file__).parent
TESTS = HELPERS.parent
ROOT = TESTS.parent
PYTHONPATH = os.pathsep.join(map(str, (HELPERS, ROOT)))  # what a program needs to import the package and the helpers
