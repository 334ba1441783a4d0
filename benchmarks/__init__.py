"""Benchmarks: one script, one question. Run them with `python -m benchmarks`."""

import os
from pathlib import Path

# Where rows and figures go. `LOGDERIV_RESULTS` names another folder.
RESULTS = Path(os.environ.get("LOGDERIV_RESULTS") or Path(__file__).resolve().parent.parent / "results").expanduser()
