"""What a container may use, read from fake control groups of both versions; and the processor."""

import os

from workbench import machine

EPYC = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 9654\nflags\t\t: fpu avx2\n\nprocessor\t: 1\n"


def test_cpu_name():
    assert machine.cpu_name(EPYC) == "AMD EPYC 9654"
    assert machine.cpu_name("processor\t: 0\nFeatures\t: fp asimd\n") is None
    assert machine.cpu_name("") is None


def test_usable_cores_are_those_of_this_process():
    assert 1 <= machine.usable_cores() <= os.cpu_count()


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_version_2_takes_the_smallest_on_the_way_up(tmp_path):
    cgroup = "0::/system.slice/job.scope\n"
    assert machine.memory_limit(cgroup, tmp_path) is None and machine.cpu_quota(cgroup, tmp_path) is None
    write(tmp_path / "system.slice/job.scope/memory.max", "max\n")
    write(tmp_path / "system.slice/job.scope/cpu.max", "max 100000\n")
    assert machine.memory_limit(cgroup, tmp_path) is None and machine.cpu_quota(cgroup, tmp_path) is None
    write(tmp_path / "system.slice/memory.max", "4294967296\n")
    write(tmp_path / "system.slice/cpu.max", "150000 100000\n")
    write(tmp_path / "memory.max", "8589934592\n")
    assert machine.memory_limit(cgroup, tmp_path) == 4 << 30
    assert machine.cpu_quota(cgroup, tmp_path) == 1.5


def test_version_1_has_a_folder_for_each_controller(tmp_path):
    cgroup = "11:cpu,cpuacct:/docker/abc\n9:name=systemd:/docker/abc\n4:memory:/docker/abc\n0::/\n"
    write(tmp_path / "memory/memory.limit_in_bytes", "9223372036854771712\n")
    write(tmp_path / "cpu,cpuacct/cpu.cfs_quota_us", "-1\n")
    write(tmp_path / "cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    assert machine.memory_limit(cgroup, tmp_path) is None and machine.cpu_quota(cgroup, tmp_path) is None
    write(tmp_path / "memory/docker/abc/memory.limit_in_bytes", "2147483648\n")
    write(tmp_path / "cpu,cpuacct/docker/abc/cpu.cfs_quota_us", "50000\n")
    write(tmp_path / "cpu,cpuacct/docker/abc/cpu.cfs_period_us", "100000\n")
    assert machine.memory_limit(cgroup, tmp_path) == 2 << 30
    assert machine.cpu_quota(cgroup, tmp_path) == 0.5


def test_a_container_that_sees_only_its_own_top(tmp_path):
    write(tmp_path / "memory.max", "1073741824\n")
    assert machine.memory_limit("0::/../../docker/abc\n", tmp_path) == 1 << 30


def test_a_system_without_control_groups(tmp_path):
    assert machine.memory_limit("", tmp_path) is None and machine.cpu_quota("", tmp_path) is None
