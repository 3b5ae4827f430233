"""How much of the cores a container may use: the quota of its control groups, versions 1 and 2.

Knows the files of Linux; not what is done with cores.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores' worth of time that this process may use, the least of its groups; None: there is no limit."""
    found = [quota for folder in _folders(root) if (quota := _quota_of(folder)) is not None]
    return min(found, default=None)


def _folders(root: Path) -> Iterator[Path]:
    """Of each group that this process is in, and of those around it. In a container the own is the root."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number != "0" and "cpu" not in controllers.split(","):
                continue
            mounts = ["."] if number == "0" else ["cpu", "cpu,cpuacct"]
            for mount in mounts:
                folder = root / "sys/fs/cgroup" / mount
                yield folder
                for part in Path(path).parts[1:]:
                    folder /= part
                    yield folder


def _quota_of(folder: Path) -> float | None:
    with suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError):
        micros = int((folder / "cpu.cfs_quota_us").read_text())
        return None if micros <= 0 else micros / int((folder / "cpu.cfs_period_us").read_text())
    return None
