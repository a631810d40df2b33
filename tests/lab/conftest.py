from __future__ import annotations

import sys
from pathlib import Path

# Worker processes import the tests' arms by name, so the folder has to be on the path that they inherit.
sys.path.insert(0, str(Path(__file__).parent))
