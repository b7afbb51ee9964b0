"""Property tests draw the same examples each time, so that CI says the same twice; `EXPLORE=1` draws new ones."""
import os
from hypothesis import settings

settings.register_profile('course', derandomize='EXPLORE' not in os.environ, deadline=None)
settings.load_profile('course')
