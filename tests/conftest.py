"""Property tests draw the same examples each time, so that CI says the same twice; `EXPLORE=1` draws new ones."""
import os
import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))   # lint, derived, pages, browser

settings.register_profile('course', derandomize='EXPLORE' not in os.environ, deadline=None)
settings.load_profile('course')
