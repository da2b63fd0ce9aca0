"""The pages that people see in a browser: labelling and the dashboard of runs; no model runs here."""

from rlhfkit.errors import MissingDependencyError

try:
    import fastapi  # noqa: F401
    import jinja2  # noqa: F401
except ImportError as _missing:
    raise MissingDependencyError(
        f"the pages need a package that is missing ({_missing.name}); pip install 'rlhfkit[web]'"
    ) from _missing
