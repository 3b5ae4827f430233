"""What is released: a source distribution with all that the build reads, and its wheel, which writes text."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import pearl_rt

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "pearl_rt" / "serve" / "page"
# What a shell has in which nothing of pearl_rt was set, and no make runs.
PLAIN = {"PATH": os.environ["PATH"]}
ELSEWHERE = ("models", "bench", "tests", "recipes", "docs", "examples")  # what a checkout has, and no release


def run(argv: list[str | Path], cwd: Path, timeout: int = 280) -> str:
    """What the command prints; nothing of a checkout is on its path."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)
    assert result.returncode == 0, result.stderr + result.stdout
    return result.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of the tracked files as they are now: what git does not know is not there."""
    work = tmp_path_factory.mktemp("sdist")
    for name in run(["git", "ls-files", "-z"], ROOT).split("\0"):
        if (ROOT / name).is_file() and not name.startswith(("models/", "bench/results/")):
            (work / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, work / "tree" / name)
    run([sys.executable, "setup.py", "-q", "sdist", "--dist-dir", work / "dist"], work / "tree")
    [archive] = (work / "dist").glob("pearl_rt-*.tar.gz")
    return archive


def test_sdist_has_what_the_build_reads(sdist: Path) -> None:
    root = sdist.name.removesuffix(".tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.removeprefix(f"{root}/") for name in archive.getnames()}
    for room in ("csrc", "pearl_rt", "kernels"):
        tracked = run(["git", "ls-files", room], ROOT).split()
        assert tracked and not {name for name in tracked if (ROOT / name).exists()} - names
    assert names >= {"CMakeLists.txt", "pyproject.toml", "setup.py", "README.md", "LICENSE"}
    assert not [name for name in names if name.startswith(tuple(f"{room}/" for room in ELSEWHERE))]


def test_package_has_the_page(sdist: Path, tmp_path: Path) -> None:
    """The files that are no Python, in what a wheel is made of."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    [tree] = tmp_path.iterdir()
    run([sys.executable, "setup.py", "-q", "build_py", "--build-lib", tmp_path / "lib"], tree)
    page = tmp_path / "lib" / "pearl_rt" / "serve" / "page"
    assert {path.name for path in page.iterdir()} == set(run(["git", "ls-files", "."], PAGE).split())
    assert {"index.html", "page.css", "page.js"} <= {path.name for path in page.iterdir()}


def test_release_has_the_version_of_the_package(sdist: Path) -> None:
    assert sdist.name == f"pearl_rt-{pearl_rt.__version__}.tar.gz"


@pytest.mark.parametrize(("inplace", "modules"), [(False, ["_C"]), (True, ["_C", "_testing", "_ptx"])])
def test_only_a_build_in_place_has_the_test_doubles(inplace: bool, modules: list[str]) -> None:
    code = (
        "import setuptools, distutils.core\n"  # setuptools puts its own distutils there
        "command = distutils.core.run_setup('setup.py', stop_after='init').get_command_obj('build_ext')\n"
        f"command.inplace = {inplace}\n"
        "command.ensure_finalized()\n"
        "print(*[extension.name for extension in command.extensions])"
    )
    assert run([sys.executable, "-c", code], ROOT).split() == [f"pearl_rt.{name}" for name in modules]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(3600)  # a C++ build, beside any other load
def test_wheel_of_the_sdist_writes_text_elsewhere(sdist: Path, tmp_path: Path) -> None:
    """Compiles everything once more, as an installation does, into an environment without anything else."""
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path]
    run([*build, sdist], tmp_path, timeout=3000)
    [wheel] = tmp_path.glob("pearl_rt-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"pearl_rt/kernels/__init__.py", "pearl_rt/py.typed", "pearl_rt/_C.pyi"} <= set(names)
    assert not [name for name in names if not name.startswith(("pearl_rt/", "pearl_rt-"))]
    modules = [name.partition(".")[0] for name in names if name.endswith(".so")]
    assert modules == ["pearl_rt/_C"]  # _testing is of the checkout

    venv.create(tmp_path / "fresh", with_pip=False)
    python = tmp_path / "fresh" / "bin" / "python"
    [site] = (tmp_path / "fresh").glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel]
    run([*pip], tmp_path)
    # Dependencies come from where the tests run: their download is not what is tested.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    code = "import pearl_rt._C, pearl_rt.kernels; print(pearl_rt.__file__, pearl_rt._C.__file__)"
    assert all(path.startswith(str(site)) for path in run([python, "-c", code], tmp_path).split())
    models = ["--target", ROOT / "models/target", "--draft", ROOT / "models/draft"]
    request = ["--prompt", "def fibonacci(n):\n", "--max-tokens", "16"]
    assert run([python, "-m", "pearl_rt", "generate", *models, *request], tmp_path).strip()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_a_virtual_environment_imports_the_checkout(tmp_path: Path) -> None:
    venv, elsewhere = tmp_path / "venv", tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    subprocess.run(["make", "-s", "importable", f"VENV={venv}"], cwd=ROOT, check=True, env=PLAIN)
    command = [venv / "bin" / "python", "-c", "import pearl_rt; print(pearl_rt.__file__)"]
    run = subprocess.run(command, cwd=elsewhere, env=PLAIN, capture_output=True, text=True)
    assert run.stdout == f"{ROOT}/pearl_rt/__init__.py\n", run.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(("venv", "installs"), [(".venv", True), ("", False)])
def test_a_build_installs_where_there_is_a_virtual_environment(venv: str, installs: bool) -> None:
    said = subprocess.run(
        ["make", "-n", "build", f"VENV={venv}"],
        cwd=ROOT,
        env=PLAIN,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "setup.py" in said and ("pearl_rt.pth" in said) == installs
