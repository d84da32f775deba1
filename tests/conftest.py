"""What every test shares: one cache of rendered pictures, few threads, no user's folders touched."""

import logging
import os
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock


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


@pytest.fixture(scope="session")
def openclipart(tmp_path_factory):
    """Return the folder of Debian's package openclipart-png (public domain), unpacked once for all tests."""
    base = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        base = base.parent
    folder = base / "openclipart"
    with FileLock(base / "openclipart.lock"):
        if not folder.exists():
            folder.mkdir()
            try:
                subprocess.run(
                    ("apt-get", "download", "openclipart-png"), cwd=folder, check=True, capture_output=True, timeout=300
                )
                [package] = folder.glob("*.deb")
                subprocess.run(("dpkg", "-x", package, folder), check=True, capture_output=True, timeout=300)
                package.unlink()
            except (OSError, ValueError, subprocess.SubprocessError):
                pass  # no Debian, no network, or no such package: those who ask are told below
    pictures = folder / "usr" / "share" / "openclipart" / "png"
    if not pictures.is_dir():
        pytest.skip("Debian's package openclipart-png cannot be had here (apt-get download openclipart-png)")
    return pictures
