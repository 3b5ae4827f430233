"""The NVIDIA driver as _C finds it, what it says when something is missing, and the owner of its handles."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fake_cuda
import pytest
import torch
from fake_cuda import FakeCuda

from pearl_rt import _C
from pearl_rt.errors import DeviceError, PearlError, RequestError, ResourceError

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not fake_cuda.has_compiler(), reason="no C++ compiler here")
OUT_OF_MEMORY, ILLEGAL_ADDRESS = 2, 700


@pytest.fixture
def fake() -> Iterator[FakeCuda]:
    yield from fake_cuda.world()


def headers() -> list[Path]:
    """Folders with NVIDIA's headers: a toolkit's, and those that Triton brings."""
    folders = [*Path("/usr/local").glob("cuda*/include"), *Path("/usr/local").glob("cuda*/targets/*/include")]
    triton = importlib.util.find_spec("triton")
    if triton and triton.origin:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "include")
    return sorted(
        {f.resolve() for f in folders if (f / "cudaTypedefs.h").exists() and (f / "cuda.h").exists()}
    )


# The driver as it is declared.


def what_the_compiler_says(folder: Path | None, csrc: Path) -> str:
    """Of tests/fakes/driver_api_check.cpp, with the declarations of csrc; nothing if it compiles."""
    if folder is None:
        pytest.skip("no cuda.h with cudaTypedefs.h here")
    check = ROOT / "tests" / "fakes" / "driver_api_check.cpp"
    command = [fake_cuda.COMPILER, "-std=c++20", "-fsyntax-only", f"-I{csrc}", "-isystem", folder, check]
    return subprocess.run(command, capture_output=True, text=True).stderr


@pytest.mark.parametrize("folder", headers() or [None], ids=str)
def test_declarations_are_nvidias(folder: Path | None) -> None:
    assert what_the_compiler_says(folder, ROOT / "csrc") == ""


@pytest.mark.parametrize(
    "right, wrong, said",
    [
        ("cuEventDestroy, 4000", "cuEventDestroy, 3020", "PFN_cuEventDestroy_v3020"),
        ("(CUevent event, CUstream stream)", "(CUstream stream, CUevent event)", "cuEventRecord is declared"),
        ("const CUgraphNode* after", "CUgraphNode* after", "cuGraphAddChildGraphNode is declared"),
        ("cuEventElapsedTime, 2000", "cuEventElapsedTime, 12080", "needs a driver newer than 12.0"),
        ("NOT_READY = 600", "NOT_READY = 601", "CUDA_ERROR_NOT_READY"),
        ("NODE_PRIORITY = 8", "NODE_PRIORITY = 4", "CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY"),
        ("NON_BLOCKING = 1", "NON_BLOCKING = 0", "CU_STREAM_NON_BLOCKING"),
    ],
)
def test_a_wrong_declaration_is_seen(right: str, wrong: str, said: str, tmp_path: Path) -> None:
    text = (ROOT / "csrc" / "cuda" / "driver" / "driver_api.h").read_text()
    assert right in text
    folder = tmp_path / "cuda" / "driver"
    folder.mkdir(parents=True)
    (folder / "driver_api.h").write_text(text.replace(right, wrong, 1))
    assert said in what_the_compiler_says((headers() or [None])[-1], tmp_path)


def test_every_number_and_field_that_is_declared_is_checked() -> None:
    api = (ROOT / "csrc" / "cuda" / "driver" / "driver_api.h").read_text()
    check = (ROOT / "tests" / "fakes" / "driver_api_check.cpp").read_text()
    numbers = re.findall(r"^constexpr [\w ]+ (CU\w+) =", api, re.M)
    assert len(numbers) > 15 and not [n for n in numbers if f"SAME_NUMBER({n})" not in check]
    [fields] = re.findall(r"^struct CUDA_MEMCPY3D \{\n(.*?)^\};", api, re.M | re.S)
    names = re.findall(r"(\w+)[,;]", fields)
    assert len(names) == 25 and not [n for n in names if f"SAME_FIELD(CUDA_MEMCPY3D, {n})" not in check]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_real_driver_has_every_call() -> None:
    driver = _C.CudaDriver()
    assert driver.num_devices == torch.cuda.device_count() and driver.version >= 12000
    for ordinal in range(driver.num_devices):
        info = driver.device(ordinal)
        assert info.name == torch.cuda.get_device_name(ordinal)
        assert info.compute_capability == torch.cuda.get_device_capability(ordinal)


def test_driver_and_devices(fake: FakeCuda) -> None:
    fake.reset(devices=3, version=12040)
    driver = _C.CudaDriver(str(fake.path))
    assert (driver.version, driver.num_devices) == (12040, 3)
    assert (driver.device(2).name, driver.device(2).compute_capability) == ("Fake GPU 2", (9, 0))
    for ordinal in (-1, 3):
        with pytest.raises(RequestError, match=f"device {ordinal} does not exist.*devices 0 to 2"):
            driver.device(ordinal)
    assert fake.violations() == []


# What is missing.


def test_no_library() -> None:
    with pytest.raises(
        ResourceError, match=r"no NVIDIA driver here \(libnowhere.so.7: .*pass device='cpu', or in"
    ):
        _C.CudaDriver("libnowhere.so.7")


def test_some_other_library() -> None:
    with pytest.raises(ResourceError, match=r"libm.so.6 is not the NVIDIA driver"):
        _C.CudaDriver("libm.so.6")


@pytest.mark.parametrize(
    "version, said", [(11080, "runs CUDA 11.8; 12.0 or newer"), (12000, "cuGetProcAddress_v2")]
)
def test_a_driver_of_before_12(version: int, said: str, tmp_path: Path) -> None:
    source = tmp_path / "old.cpp"
    source.write_text(
        f'extern "C" int cuDriverGetVersion(int* version) {{ *version = {version}; return 0; }}'
    )
    library = tmp_path / "libold.so"
    subprocess.run([fake_cuda.COMPILER, "-shared", "-fPIC", source, "-o", library], check=True)
    with pytest.raises(ResourceError, match=said):
        _C.CudaDriver(str(library))


def test_calls_that_it_lacks_are_named(fake: FakeCuda) -> None:
    fake.reset(hidden=("cuGraphUpload", "cuEventQuery"), version=12010)
    said = (
        r"CUDA 12.1\) lacks cuEventQuery of version 2000, cuGraphUpload of version 11010: .*update the driver"
    )
    with pytest.raises(ResourceError, match=said):
        _C.CudaDriver(str(fake.path))
    assert fake.num_calls("cuInit") == 0


def test_the_fake_resolves_as_cuda_does(fake: FakeCuda) -> None:
    """Older than a call: nothing, and no error. Newer than the driver: an invalid value."""
    fake.reset(version=12000)
    found, status = ctypes.c_void_p(), ctypes.c_int()
    for version, expected in ((10000, (0, False, 2)), (11040, (0, True, 0)), (12010, (1, False, 0))):
        where = (ctypes.byref(found), version, 1, ctypes.byref(status))
        code = fake.call("cuGetProcAddress_v2", b"cuGraphInstantiateWithFlags", *where)
        assert (code, found.value is not None, status.value) == expected
    assert fake.violations() == []


def test_no_devices(fake: FakeCuda) -> None:
    fake.reset(devices=0)
    with pytest.raises(
        ResourceError, match=r"CUDA 13.0\) shows no GPU: pass device='cpu', or look at nvidia-smi"
    ):
        _C.CudaDriver(str(fake.path))


@pytest.mark.parametrize("call", ["cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName"])
def test_one_device_error_with_the_calls_name(fake: FakeCuda, call: str) -> None:
    fake.inject(call, 1, ILLEGAL_ADDRESS)
    with pytest.raises(
        DeviceError, match=rf"^{call}: CUDA_ERROR_ILLEGAL_ADDRESS \(700\), an illegal mem"
    ) as caught:
        _C.CudaDriver(str(fake.path)).device(0)
    error = caught.value
    assert isinstance(error, PearlError) and isinstance(error, RuntimeError)
    assert (error.call, error.code, error.name) == (call, 700, "CUDA_ERROR_ILLEGAL_ADDRESS")
    assert error.text == "an illegal memory access was encountered" and error.place in str(error)
    assert str(error).endswith("; its context is lost: start a new process")


def test_an_error_without_a_name(fake: FakeCuda) -> None:
    fake.inject("cuInit", 1, 4711)
    with pytest.raises(
        DeviceError, match=r"cuInit: an error without a name \(4711\), which has no description"
    ):
        _C.CudaDriver(str(fake.path))


def test_out_of_memory_is_a_resource(fake: FakeCuda) -> None:
    fake.inject("cuInit", 1, OUT_OF_MEMORY)
    with pytest.raises(ResourceError, match=r"cuInit: CUDA_ERROR_OUT_OF_MEMORY \(2\), out of memory, while"):
        _C.CudaDriver(str(fake.path))


def test_importing_asks_for_no_driver() -> None:
    code = (
        "from pearl_rt import _C;"
        "assert not any('libcuda' in line for line in open('/proc/self/maps')), 'libcuda is loaded'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# The owners of handles: tests/fakes/cuda_handles.cpp. tests/sanitize.py runs it under the sanitizers.


@pytest.fixture(scope="module")
def handles() -> list[str]:
    return fake_cuda.program("cuda_handles.cpp")


@pytest.mark.slow
@pytest.mark.parametrize("scenario", fake_cuda.SCENARIOS)
def test_owners_of_handles(handles: list[str], scenario: str) -> None:
    for seed in range(3):
        result = subprocess.run([*handles, scenario, str(seed)], capture_output=True, text=True, timeout=120)
        assert result.returncode == 0 and result.stdout == "as it should be\n", result.stderr
