"""How much memory this process may still take: what the host has free, and what the cgroups around it leave."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

# Files of limit and use; what memory.stat calls the part of the use that can be taken back.
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def free_memory(root: Path = Path("/")) -> int:
    """Bytes, page cache that can be dropped included. `root`: where proc and sys are mounted."""
    return min([_available(root), *_left_by_cgroups(root)])


def _available(root: Path) -> int:
    for line in (root / "proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.removesuffix("kB")) << 10
    raise OSError(f"{root / 'proc/meminfo'}: no MemAvailable")


def _left_by_cgroups(root: Path) -> Iterator[int]:
    """Of this process's cgroup and all above it, where they have a limit."""
    mount = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            hierarchies, files = (mount, mount / "unified"), _V2
        elif "memory" in controllers.split(","):
            hierarchies, files = (mount / controllers, mount / "memory"), _V1
        else:
            continue
        for hierarchy in hierarchies:
            inside = hierarchy / path.lstrip("/")
            for group in (inside, *inside.parents):
                if (left := _left(group, *files)) is not None:
                    yield left
                if group == hierarchy:
                    break


def _left(group: Path, limit: str, use: str, reclaimable: str) -> int | None:
    """None: there is no such group here (a container sees its own as the root), or it has no limit."""
    try:
        most = (group / limit).read_text().strip()
        used = int((group / use).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return None if most == "max" else max(int(most) - used + int(stat.get(reclaimable, 0)), 0)
