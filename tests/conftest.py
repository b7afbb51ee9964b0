"""Property tests draw the same examples each time, so that CI says the same twice; `EXPLORE=1` draws new ones."""
import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))   # lint, derived, pages, browser

settings.register_profile('course', derandomize='EXPLORE' not in os.environ, deadline=None)
settings.load_profile('course')
pytest.register_assert_rewrite('graders')


@pytest.fixture(autouse=True)
def progress_folder(tmp_path, monkeypatch):
    "What is solved in a test is noted in a folder of its own."
    monkeypatch.setenv('COURSE_PROGRESS', str(tmp_path))
    monkeypatch.delenv('COURSE_SOLUTIONS', raising=False)
    return tmp_path
