"""What an installed rlhfkit is made of, and what it works without."""

import subprocess
import sys

import pytest

# What only extras bring. An import of one of them fails, as where the extra is not installed.
OPTIONAL = ["fastapi", "uvicorn", "starlette", "sacrebleu", "psycopg", "Box2D", "datasets", "pyarrow", "pandas"]
WITHOUT_EXTRAS = """
import importlib, pkgutil, sys
sys.modules.update(dict.fromkeys({optional!r}))
import rlhfkit
allowed = ("rlhfkit.web", "rlhfkit.pipeline.label_session", "rlhfkit.__main__")
for module in pkgutil.walk_packages(rlhfkit.__path__, "rlhfkit.", onerror=lambda name: None):
    if not module.name.startswith(allowed):
        importlib.import_module(module.name)
"""


@pytest.mark.thorough
def test_what_needs_no_page_is_imported_without_the_extras():
    code = WITHOUT_EXTRAS.format(optional=OPTIONAL)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
