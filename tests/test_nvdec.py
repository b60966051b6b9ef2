import json
import os
import shutil
import subprocess
import sys

import pytest

from tests import fake_driver

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="a fake driver needs a C compiler")

ASK = """
import ctypes, dataclasses, json
from streamfeat.decode import nvdec
from streamfeat.driver import DriverError
try:
    problem = nvdec.query({index}) and None
except DriverError as error:
    problem = str(error)
try:
    balance = ctypes.CDLL("libcuda.so.1").fake_balance()
except (OSError, AttributeError):
    balance = None
print(json.dumps([
    nvdec.engines({index}),
    {{name: dataclasses.astuple(found) for name, found in nvdec.capabilities({index}).items()}},
    problem,
    balance,
]))
"""


def ask(folder, index=0, **environment):
    """What a process finds that has the libraries in ``folder``: engines, capabilities, problem, contexts left."""
    done = subprocess.run(
        [sys.executable, "-c", ASK.format(index=index)], text=True, capture_output=True, check=True,
        env={**os.environ, "LD_LIBRARY_PATH": str(folder), **environment},
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    return fake_driver.build(
        tmp_path_factory.mktemp("driver"), libcuda=fake_driver.CUDA, libnvcuvid=fake_driver.CUVID
    )


def test_reads_the_struct_as_a_c_compiler_lays_it_out(driver):
    engines, capabilities, problem, balance = ask(driver)
    assert problem is None
    assert engines == 7
    assert capabilities == {
        "h264": [7, 144, 145, 8192, 4352], "hevc": [7, 144, 145, 8192, 4352], "mjpeg": [1, 144, 145, 8192, 4352]
    }
    assert balance == 0  # every context that was taken was given back


def test_an_old_driver_does_not_say_how_many_engines(driver):
    engines, capabilities, problem, _ = ask(driver, FAKE_ENGINES="0")
    assert engines is None and problem is None
    assert set(capabilities) == {"h264", "hevc", "mjpeg"}


def test_errors_are_one_line_that_says_what_the_driver_said(driver):
    assert ask(driver, FAKE_CUINIT="100")[:3] == [None, {}, "cuInit: no CUDA-capable device is detected"]
    assert ask(driver, index=3)[:3] == [None, {}, "cuDeviceGet: invalid device ordinal"]
    assert ask(driver, FAKE_CUINIT="77")[:3] == [None, {}, "cuInit: error 77"]


def test_what_is_missing_is_named(tmp_path, driver):
    engines, capabilities, problem, _ = ask(fake_driver.build(tmp_path / "a", libcuda=fake_driver.CUDA))
    assert (engines, capabilities) == (None, {}) and "libnvcuvid.so.1" in problem
    old = "int cuInit(unsigned flags) { return 0; }"
    folder = fake_driver.build(tmp_path / "b", libcuda=old, libnvcuvid=fake_driver.CUVID)
    engines, capabilities, problem, _ = ask(folder)
    assert (engines, capabilities) == (None, {}) and "too old" in problem and "cuDeviceGet" in problem
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "libcuda.so.1").write_bytes(b"not a library")
    shutil.copy(driver / "libnvcuvid.so.1", tmp_path / "c")
    engines, capabilities, problem, _ = ask(tmp_path / "c")
    assert (engines, capabilities) == (None, {}) and "libcuda.so.1" in problem

