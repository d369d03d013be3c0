"""Loaded by the workers of a Dask cluster in the tests: lets them import the recipes."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
