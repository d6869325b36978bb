"""How much memory there is, of the machine and of the container this process runs in."""

import contextlib
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CONTAINERS = (  # folder, files of the limit and of what is in use, entry of memory.stat that could be freed
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def _container(folder, limit, used, cached):
    """(bytes left, bytes in all) of a control group; OSError or ValueError if there is none, or no limit."""
    most, spent = (int((folder / name).read_text(encoding="ascii")) for name in (limit, used))
    lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
    spent -= int(dict(line.split(maxsplit=1) for line in lines).get(cached, 0))
    return max(0, most - spent), most


def free():
    """(bytes left, bytes in all), or None where that can't be told: anywhere but on Linux.

    Of machine and container the one that has less left; files that could be dropped count as left.
    """
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="ascii").splitlines())
        left, total = (int(lines[name].split()[0]) * 1024 for name in ("MemAvailable", "MemTotal"))
    except (OSError, KeyError):
        return None
    found = [(left, total)]
    for container in CONTAINERS:
        with contextlib.suppress(OSError, ValueError):
            found.append(_container(*container))
    return min(found)
