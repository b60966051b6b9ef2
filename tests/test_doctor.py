import copy
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest

from streamfeat.decode.base import FallBack
from streamfeat.doctor import doctor, isolate, probes
from streamfeat.doctor.findings import examine
from streamfeat.doctor.report import Report
from tests import fake_driver

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="a fake driver needs a C compiler")

#: what the probes say on a machine where all is well
GOOD = {
    "driver": {
        "release": "570.86.15",
        "cuda": [12, 8],
        "gpus": [
            {
                "name": "NVIDIA H200", "compute": [9, 0], "free": 130 * 2**30, "total": 139 * 2**30,
                "nvdec": {codec: {"engines": 7} for codec in ("av1", "h264", "hevc")},
            }
        ],
    },
    "torch": {
        "version": "2.10.0+cu128", "cuda": "12.8",
        "devices": {
            "cpu": {"precision": "fp32", "why": "no AMX", "fp8": False},
            "cuda:0": {"precision": "fp16", "why": "fast", "fp8": True},
        },
    },
    "dali": {"version": "2.4.0", "cuda": [12, 9], "decoded": 16},
    "pyav": {"version": "18.1.0", "ffmpeg": "8.1.2", "decodes": ["h264", "hevc", "vp9", "mpeg4", "mjpeg"]},
    "hub": {
        "endpoint": "https://hub", "default": "owner/base", "cached": [], "folder": "/cache", "free": 10**12,
        "writable": True,
    },
    "disk": {"folder": "/data", "free": 10**12, "writable": True},
    "memory": {"cores": 16, "available": 10**11},
}
CPU_ONLY = {"cpu": GOOD["torch"]["devices"]["cpu"]}


def report(device="cuda", **changed):
    """The report on the good machine but for the probes that are given."""
    facts = {**copy.deepcopy(GOOD), **changed}
    return Report(device, examine(facts), facts)


def marks(found):
    return {finding.what: finding.mark(found.device) for finding in found.findings if finding.remedy}


def finding(found, what):
    (one,) = [finding for finding in found.findings if finding.what == what]
    return one


# what the facts mean


def test_a_machine_where_all_is_well():
    found = report()
    assert found.works and found.works_on("cpu")
    assert marks(found) == {}
    assert [f.what for f in found.findings] == [
        "driver", "GPU", "NVDEC", "torch", "precision", "DALI", "PyAV", "weights", "disk", "memory"
    ]
    page = str(found)
    assert "NVIDIA H200, compute capability 9.0, 130.0 of 139.0 GiB free" in page
    assert "7 engines: av1, h264, hevc" in page
    assert "fp16 on cuda:0 (fast; fp8 is possible)" in page and "decodes on the GPU" in page
    assert page.endswith("extract on a GPU works")


def test_no_driver():
    found = report(
        driver={"problem": "libcuda.so.1: no such file", "release": None, "visible_devices": None},
        torch={"version": "2.10.0+cu128", "cuda": "12.8", "devices": CPU_ONLY},
    )
    assert not found.works and found.works_on("cpu")
    assert marks(found) == {"driver": "missing", "torch": "missing"}
    assert "--gpus all" in finding(found, "driver").remedy
    assert str(found).endswith("extract on a GPU would not work: driver, torch; on the CPU it works "
                               "(extract --device cpu)")


@pytest.mark.parametrize(("resize", "int8", "mark", "words"), [
    (True, None, "ok", "resizing, int8"), (True, "no VNNI", "ok", "resizing, but not int8: no VNNI"),
    (False, "no compiler", "warning", "without a C compiler")])
def test_what_is_compiled(resize, int8, mark, words):
    found = report("cpu", torch={**GOOD["torch"], "kernels": {"resize": resize, "int8": int8}})
    assert found.works and finding(found, "kernels").mark("cpu") == mark
    assert words in finding(found, "kernels").found
    assert ("gcc" in finding(found, "kernels").remedy) == (mark == "warning")


def test_gpus_that_the_environment_hides():
    found = report(driver={"problem": "cuInit: no CUDA-capable device", "release": "570", "visible_devices": ""})
    assert "CUDA_VISIBLE_DEVICES is ''" in finding(found, "driver").remedy


@pytest.mark.parametrize(("built", "wanted"), [("12.8", "525.60"), ("13.0", "580")])
def test_a_driver_too_old_for_torch(built, wanted):
    old = {**GOOD["driver"], "release": "470.82", "cuda": [11, 4]}
    found = report(driver=old, torch={**GOOD["torch"], "cuda": built})
    assert not found.works
    assert marks(found)["driver"] == "missing"
    assert "470.82" in finding(found, "driver").found and wanted in finding(found, "driver").remedy


def test_torch_for_the_cpu_only():
    cpu = {"version": "2.10.0+cpu", "cuda": None, "devices": CPU_ONLY}
    found = report(torch=cpu)
    assert not found.works and found.works_on("cpu")
    assert marks(found) == {"torch": "missing"}
    assert "CPU only" in finding(found, "torch").found and "pip install" in finding(found, "torch").remedy


def test_torch_whose_kernels_do_not_run_on_this_gpu():
    devices = {**CPU_ONLY, "cuda:0": {"problem": "no kernel image is available"}}
    found = report(torch={**GOOD["torch"], "devices": devices})
    assert not found.works and "no kernel image" in finding(found, "torch").found


def test_an_encoder_that_runs_nowhere_blocks_both():
    found = report("cpu", torch={**GOOD["torch"], "devices": {"cpu": {"problem": "libgomp is broken"}}})
    assert not found.works and not found.works_on("cuda")


def test_no_nvdec_is_a_warning_since_the_cpu_decodes():
    driver = copy.deepcopy(GOOD["driver"])
    driver["gpus"][0] = {**driver["gpus"][0], "nvdec": {}, "nvdec_problem": "libnvcuvid.so.1: not there"}
    found = report(driver=driver)
    assert found.works and marks(found) == {"NVDEC": "warning"}
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video" in finding(found, "NVDEC").remedy


def test_a_gpu_without_a_decoder():
    driver = copy.deepcopy(GOOD["driver"])
    driver["gpus"][0]["nvdec"] = {}
    found = report(driver=driver)
    assert found.works and marks(found) == {"NVDEC": "warning"}


def test_several_gpus_are_numbered():
    good = GOOD["driver"]["gpus"][0]
    driver = {**GOOD["driver"], "gpus": [good, {"problem": "cuDevicePrimaryCtxRetain: out of memory"}]}
    found = report(driver=driver)
    assert {"GPU 0", "NVDEC 0", "GPU 1"} <= {finding.what for finding in found.findings}
    assert marks(found) == {"GPU 1": "missing"}


def test_no_dali_is_a_warning_with_the_command_to_install_it():
    found = report(dali={"failed": "No module named 'nvidia'"})
    assert found.works and marks(found) == {"DALI": "warning"}
    assert "pip install nvidia-dali-cuda120" in finding(found, "DALI").remedy


def test_dali_that_does_not_decode_is_a_warning():
    found = report(dali={"version": "2.4.0", "cuda": [12, 9], "problem": "nothing came for 20 seconds"})
    assert found.works and marks(found) == {"DALI": "warning"}
    assert "nothing came" in finding(found, "DALI").found


def test_dali_for_another_cuda_than_torch():
    found = report(dali={"version": "2.4.0", "cuda": [13, 0]})
    assert "pip install nvidia-dali-cuda120" in finding(found, "DALI").remedy


def test_no_pyav_blocks_both():
    found = report(pyav={"failed": "No module named 'av'"})
    assert not found.works and not found.works_on("cpu") and marks(found) == {"PyAV": "missing"}


@pytest.mark.parametrize(
    ("hub", "mark"),
    [
        ({"problem": "no route"}, "warning"),
        ({"problem": "no route", "cached": ["owner/base"]}, None),
        ({"problem": "no route", "cached": ["owner/large"]}, "warning"),
        ({"writable": False}, "warning"),
        ({"free": 10**8}, "warning"),
        ({"free": 10**8, "writable": False, "cached": ["owner/base"]}, None),
    ],
)
def test_weights(hub, mark):
    found = report(hub={**GOOD["hub"], **hub})
    assert found.works and marks(found).get("weights") == mark


def test_little_of_anything_is_a_warning():
    found = report(
        disk={"folder": "/data", "free": 10**8, "writable": True}, memory={"cores": 1, "available": 2**30}
    )
    assert found.works and marks(found) == {"disk": "warning", "memory": "warning"}
    found = report(disk={"folder": "/data", "free": 10**12, "writable": False})
    assert found.works and "cannot be written" in finding(found, "disk").found


def test_facts_that_nobody_thought_of_do_not_end_the_doctor():
    for name in GOOD:
        found = report(**{name: {"unheard": "of"}})
        assert any(f.found.startswith("cannot be judged") for f in found.findings), name
        assert str(found)
        failed = report(**{name: {"failed": "crashed with SIGSEGV"}})
        assert [f.remedy for f in failed.findings if f.found == "crashed with SIGSEGV"] != [""], name


# the probes, in processes of their own


@needs_compiler
def test_the_driver_is_asked_for_all_it_knows(tmp_path, monkeypatch):
    folder = fake_driver.build(
        tmp_path / "lib", libcuda=fake_driver.CUDA, libnvcuvid=fake_driver.CUVID, **{"libnvidia-ml": fake_driver.NVML}
    )
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))
    facts = isolate.ask({"driver": {}})["driver"]
    assert (facts["release"], facts["cuda"]) == ("570.86.15", [12, 8])
    (gpu,) = facts["gpus"]
    assert (gpu["name"], gpu["compute"]) == ("NVIDIA Fake 9000", [9, 0])
    assert (gpu["free"], gpu["total"]) == (60 * 2**30, 80 * 2**30)
    assert gpu["nvdec"]["h264"]["engines"] == 7 and set(gpu["nvdec"]) == {"h264", "hevc", "mjpeg"}
    assert marks(report(driver=facts)) == {}

    monkeypatch.setenv("FAKE_CUDA", "11040")
    assert marks(report(driver=isolate.ask({"driver": {}})["driver"]))["driver"] == "missing"
    (folder / "libnvcuvid.so.1").unlink()
    monkeypatch.setenv("FAKE_CUDA", "12080")
    assert marks(report(driver=isolate.ask({"driver": {}})["driver"])) == {"NVDEC": "warning"}
    monkeypatch.setenv("FAKE_CUINIT", "100")
    facts = isolate.ask({"driver": {}})["driver"]
    assert "no CUDA-capable device" in facts["problem"] and facts["release"] == "570.86.15"


@needs_compiler
def test_torch_with_a_driver_that_only_pretends(tmp_path, monkeypatch):
    """torch finds the libraries too, and what it makes of them must be a finding and never the end."""
    folder = fake_driver.build(tmp_path / "lib", libcuda=fake_driver.CUDA, libnvcuvid=fake_driver.CUVID)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))
    found = report(**isolate.ask({"driver": {}, "torch": {"gpus": True}}))
    assert not found.works
    assert finding(found, "GPU").mark("cuda") == "ok" and marks(found)["torch"] == "missing"
    assert "sees no GPU: " in finding(found, "torch").found  # and then what CUDA says
    assert found.works_on("cpu")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ImportError('libx264.so: cannot open\\nmore')", "libx264.so: cannot open"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed with SIGSEGV"),
        ("import os; os._exit(3)", "ended with exit code 3"),
        ("import sys; sys.exit('no')", "no"),
        ("import os; os.write(1, bytes(range(256))); os._exit(0)", "ended with exit code 0"),
        ("import time; time.sleep(60)", "no answer in 1 seconds"),
    ],
)
def test_a_probe_may_do_what_it_likes(tmp_path, monkeypatch, code, reason):
    (tmp_path / "av.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    started = time.monotonic()
    facts = isolate.ask({"pyav": {}, "memory": {}}, limit=1 if "sleep" in code else 20)
    assert facts["pyav"] == {"failed": reason}
    if "sleep" in code:
        assert time.monotonic() - started < 10
    else:
        assert facts["memory"]["cores"] >= 1


def test_a_library_that_talks_and_crashes_at_the_end_has_answered(tmp_path, monkeypatch):
    code = "import atexit, os; print('hello', flush=True); atexit.register(os.abort)\n"
    code += "__version__ = '1'\nclass Codec:\n    def __init__(self, name, mode): pass\n"
    (tmp_path / "av.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    assert isolate.ask({"pyav": {}})["pyav"]["version"] == "1"


def test_no_process_to_be_had(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert "No such file" in isolate.ask({"memory": {}})["memory"]["failed"]
    assert not doctor().works


def test_dali_decodes_what_the_doctor_gives_it():
    """On the CPU, and hence in a codec that DALI has there."""
    pytest.importorskip("nvidia.dali")
    assert probes.decode("cpu", "mjpeg", "avi") == 16
    with pytest.raises(FallBack, match="no h264"):
        probes.decode("cpu", "h264", "mp4")


def test_pyav_here_has_the_codecs_that_datasets_come_in():
    assert {"h264", "hevc", "vp9", "mpeg4", "mjpeg"} <= set(isolate.ask({"pyav": {}})["pyav"]["decodes"])


class _Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"id": "OpenGVLab/VideoMAEv2-Base", "modelId": "OpenGVLab/VideoMAEv2-Base"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


def test_the_hub_and_its_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        facts = isolate.ask({"hub": {}})["hub"]
        server.shutdown()
    assert "problem" not in facts and facts["cached"] == [] and facts["writable"]
    assert facts["folder"] == str(tmp_path / "hub")

    repo = tmp_path / "hub" / "models--OpenGVLab--VideoMAEv2-Base"
    (repo / "snapshots" / "abc").mkdir(parents=True)
    (repo / "snapshots" / "abc" / "model.safetensors").write_bytes(b"weights")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        facts = isolate.ask({"hub": {}})["hub"]
    assert "problem" in facts and facts["cached"] == ["OpenGVLab/VideoMAEv2-Base"]
    assert time.monotonic() - started < 30


# this very machine


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "streamfeat", "doctor", *arguments], text=True, capture_output=True, **options
    )


def test_here():
    import torch

    done = run("--json")
    found = json.loads(done.stdout)
    assert done.stderr == ""
    assert done.returncode == (0 if found["works"] else 1)
    assert found["device"] == "cuda" and (found["works"] or not torch.cuda.is_available())
    assert {f["mark"] for f in found["findings"]} <= {"ok", "warning", "missing"}
    assert found["facts"]["torch"]["devices"]["cpu"]["why"]


def test_here_on_the_cpu(tmp_path):
    done = run("--device", "cpu", cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.getcwd()})
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == "extract on the CPU works"
    assert "GPU" not in done.stdout and "missing" not in done.stdout
    assert str(tmp_path) in done.stdout


def test_an_unknown_device_is_wrong_usage():
    assert run("--device", "tpu").returncode == 2
    with pytest.raises(ValueError, match="tpu"):
        doctor("tpu")
