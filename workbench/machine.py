"""What the operating system lets this process have: a container's limits are not the machine's."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60
"""Version 1 writes a number near 2**63 for no limit."""


def cpu_name(cpuinfo: str) -> str | None:
    """Return the processor's name from the text of /proc/cpuinfo, None where it has none (most ARM)."""
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else None


def usable_cores() -> int:
    """Return the cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_limit(cgroup: str, root: Path = CGROUPS) -> int | None:
    """Return the container's memory limit in bytes, the smallest of its control group and those around it.

    Args:
        cgroup: the text of /proc/self/cgroup.
        root: where control groups are mounted; version 2 alone, or version 1 with a folder for each controller.
    """
    texts = _read(cgroup, root, "memory", ("memory.max", "memory.limit_in_bytes"))
    limits = [int(text) for text in texts if text.isdigit()]
    return min((limit for limit in limits if limit < _UNLIMITED), default=None)


def cpu_quota(cgroup: str, root: Path = CGROUPS) -> float | None:
    """Return the cores' worth of time that the container may use, None where there is no limit; see `memory_limit`."""
    quotas = []
    for folder in _folders(cgroup, root, "cpu"):
        if (folder / "cpu.max").is_file():
            quotas.append((folder / "cpu.max").read_text().split())
        elif (folder / "cpu.cfs_quota_us").is_file():
            quotas.append([(folder / name).read_text().strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")])
    return min((int(quota) / int(period) for quota, period in quotas if quota.isdigit()), default=None)


def _read(cgroup: str, root: Path, controller: str, names: tuple[str, ...]) -> list[str]:
    files = [folder / name for folder in _folders(cgroup, root, controller) for name in names]
    return [file.read_text().strip() for file in files if file.is_file()]


def _folders(cgroup: str, root: Path, controller: str) -> Iterator[Path]:
    """Yield the process's folder of a controller and those above it; a container may see the top one alone."""
    for line in cgroup.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            top = root / controllers if controllers else root
            for folder in (Path(path), *Path(path).parents):
                yield top / folder.relative_to("/")
