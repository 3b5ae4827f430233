"""Skipped tests, told so that one more stands out: a line per file for those that need a GPU, and every other
by name. With --no-skips, for machines that have all but a GPU, every other is a failure."""

from collections import Counter
from collections.abc import Generator
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="a skipped test that needs no GPU fails")


def refuse(report: Any, config: pytest.Config, keywords: Any) -> None:
    """Turns a skip into a failure, if it may not be."""
    if report.skipped and config.getoption("--no-skips") and "gpu" not in keywords:
        report.outcome = "failed"
        report.longrepr = f"skipped, which --no-skips forbids: {report.longrepr[2]}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    if not hasattr(report, "wasxfail"):
        refuse(report, item.config, item.keywords)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    report = yield
    refuse(report, collector.config, collector.keywords)
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    need_gpu: Counter[str] = Counter()
    others = []
    for report in terminalreporter.getreports("skipped"):
        if "gpu" in getattr(report, "keywords", ()):
            need_gpu[report.nodeid.split("::")[0]] += 1
        else:
            others.append(f"{report.nodeid}: {report.longrepr[2]}")
    if need_gpu or others:
        terminalreporter.section("skipped")
    for name, count in need_gpu.items():
        terminalreporter.line(f"{name}: {count} that need a GPU")
    for line in others:
        terminalreporter.line(line, yellow=True)
