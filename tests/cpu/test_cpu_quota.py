"""CPU quotas of containers: of control groups, versions 1 and 2, and of the groups around them."""

from pathlib import Path

import pytest

from pearl_rt.backends import cpu
from pearl_rt.backends.cpu_quota import cpu_quota


def written(root: Path, **files: str) -> Path:
    for name, content in files.items():
        file = root / name.replace("__", "/").replace("DOT", ".").replace("COMMA", ",")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root


V2 = {"proc__self__cgroup": "0::/outer/inner\n"}
V1 = {"proc__self__cgroup": "4:cpu,cpuacct:/pod\n2:memory:/pod\n0::/\n"}
CASES = {
    "nothing": ({}, None),
    "none-set": (V2 | {"sys__fs__cgroup__outer__cpuDOTmax": "max 100000\n"}, None),
    "own": (V2 | {"sys__fs__cgroup__outer__inner__cpuDOTmax": "150000 100000\n"}, 1.5),
    "around": (
        V2
        | {
            "sys__fs__cgroup__outer__cpuDOTmax": "50000 100000",
            "sys__fs__cgroup__outer__inner__cpuDOTmax": "400000 100000",
        },
        0.5,
    ),
    "container": (V2 | {"sys__fs__cgroup__cpuDOTmax": "300000 100000"}, 3.0),
    "version-1": (
        V1
        | {
            "sys__fs__cgroup__cpuCOMMAcpuacct__pod__cpuDOTcfs_quota_us": "250000",
            "sys__fs__cgroup__cpuCOMMAcpuacct__pod__cpuDOTcfs_period_us": "100000",
        },
        2.5,
    ),
    "version-1-none": (V1 | {"sys__fs__cgroup__cpu__pod__cpuDOTcfs_quota_us": "-1"}, None),
    "damaged": (V2 | {"sys__fs__cgroup__outer__inner__cpuDOTmax": "a lot"}, None),
}


@pytest.mark.parametrize(("files", "quota"), CASES.values(), ids=CASES.keys())
def test_the_quota(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    assert cpu_quota(written(tmp_path, **files)) == quota


@pytest.mark.parametrize(("quota", "count"), [(None, 8), (0.2, 1), (1.5, 2), (3.0, 3), (99.0, 8)])
def test_cores_are_as_many_as_the_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, count: int
) -> None:
    monkeypatch.setattr(cpu, "cpu_quota", lambda: quota)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert len(cpu.choose_cores(None)) == count
    assert len(cpu.choose_cores(8)) == 8
