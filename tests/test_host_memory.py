"""Free memory as /proc and /sys tell it, written out by hand."""

from pathlib import Path

import pytest

from rtp_llm.host_memory import free_memory

MIB = 1 << 20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "proc/meminfo", "MemTotal: 4096000 kB\nMemAvailable: 1024000 kB\n")
    return tmp_path


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def v2(group: Path, limit: str, used: int, inactive_file: int = 0) -> None:
    write(group / "memory.max", f"{limit}\n")
    write(group / "memory.current", f"{used}\n")
    write(group / "memory.stat", f"anon 5\ninactive_file {inactive_file}\n")


def v1(group: Path, limit: int, used: int) -> None:
    write(group / "memory.limit_in_bytes", f"{limit}\n")
    write(group / "memory.usage_in_bytes", f"{used}\n")
    write(group / "memory.stat", "inactive_file 7\ntotal_inactive_file 10\n")


def test_without_a_limit_the_host_decides(root: Path) -> None:
    assert free_memory(root) == 1_024_000 << 10
    write(root / "proc/self/cgroup", "0::/a\n")
    v2(root / "sys/fs/cgroup/a", "max", 5)
    assert free_memory(root) == 1_024_000 << 10


def test_the_tightest_group_above_counts_and_page_cache_is_free(root: Path) -> None:
    write(root / "proc/self/cgroup", "0::/a/b\n")
    v2(root / "sys/fs/cgroup/a/b", str(900 * MIB), 100 * MIB)
    assert free_memory(root) == 800 * MIB
    v2(root / "sys/fs/cgroup/a", str(500 * MIB), 300 * MIB, inactive_file=50 * MIB)
    assert free_memory(root) == 250 * MIB
    v2(root / "sys/fs/cgroup/a", str(100 * MIB), 300 * MIB)
    assert free_memory(root) == 0


def test_a_container_sees_its_group_as_the_root(root: Path) -> None:
    write(root / "proc/self/cgroup", "0::/../made/elsewhere\n")
    v2(root / "sys/fs/cgroup", str(64 * MIB), 4 * MIB)
    assert free_memory(root) == 60 * MIB


def test_the_older_hierarchy_is_read_too(root: Path) -> None:
    write(root / "proc/self/cgroup", "4:memory:/pod\n3:cpu,cpuacct:/pod\n0::/\n")
    v1(root / "sys/fs/cgroup/memory", 1 << 63, 3000)
    v1(root / "sys/fs/cgroup/memory/pod", 70 * MIB, 20 * MIB)
    assert free_memory(root) == 50 * MIB + 10
