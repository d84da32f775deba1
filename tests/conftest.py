"""What every test shares: one cache of rendered pictures, few threads, no user's folders touched."""

import logging
import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def shared_cache(tmp_path_factory):
    """Point caches at a folder that all of pytest's processes, and the processes they start, share."""
    base = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        base = base.parent
    cache = Path(base, "cache")
    cache.mkdir(exist_ok=True)
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(cache)
    yield cache
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    """Run each test in its own empty folder, so that nothing is written into the checkout."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def quiet_logging(monkeypatch):
    """Lightning logs to the stderr that it found on import, which pytest has long closed."""
    monkeypatch.setattr(logging, "raiseExceptions", False)
