#!/usr/bin/env python3
"""Start, look at and stop a cluster on this machine; `--help` lists the rest."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from llama_nb.cluster.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
