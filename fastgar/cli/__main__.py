"""``python -m fastgar.cli``, the same as ``fastgar``."""

from __future__ import annotations

import sys

from .main import main

sys.exit(main())
