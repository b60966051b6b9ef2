"""The image, as far as it goes without an engine: linted, read, and its steps run in a folder of their own."""

import dataclasses
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.media import write_video

ROOT = Path(__file__).parent.parent
DOCKERFILE = ROOT / "docker" / "Dockerfile"
STRANGER = 12345  # a user that no machine knows


@dataclasses.dataclass
class Instruction:
    name: str
    value: str


def instructions(text=None):
    """Of a Dockerfile, in order, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", text or DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", "").splitlines()
    return [Instruction(*line.split(None, 1)) for line in lines if line.strip()]


def only(name):
    return [instruction.value for instruction in instructions() if instruction.name == name]


def environment():
    return dict(word.split("=", 1) for value in only("ENV") for word in shlex.split(value))


def arguments():
    return dict(value.split("=", 1) for value in only("ARG"))


def dependency_step():
    (step,) = [value for value in only("RUN") if "requirements.py" in value]
    return step


def source_step():
    (step,) = [value for value in only("RUN") if "--no-build-isolation" in value]
    return step


def lint(path):
    program = Path(sys.executable).parent / "hadolint"
    return subprocess.run([program, "--no-color", path], text=True, capture_output=True)


# what is written


@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="hadolint comes for x86-64 Linux")
def test_hadolint_finds_nothing_and_would_find_something(tmp_path):
    done = lint(DOCKERFILE)
    assert (done.returncode, done.stdout) == (0, "")
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.read_text().replace("USER ${UID}:${GID}", "USER root"))
    assert "DL3002" in lint(tmp_path / "Dockerfile").stdout


def test_base_is_pinned_and_is_a_python_that_streamfeat_runs_on():
    (base,) = only("FROM")
    version = re.fullmatch(r"python:(\d+)\.(\d+)\.(\d+)-slim-\w+", base)
    assert version and tuple(map(int, version.groups()[:2])) >= (3, 10)


def test_runs_as_no_root_and_with_the_drivers_video_part():
    assert only("USER") == ["${UID}:${GID}"] and arguments()["UID"] == arguments()["GID"] == "1000"
    assert environment()["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility,video"
    assert json.loads(only("ENTRYPOINT")[0]) == ["streamfeat"]
    assert only("WORKDIR")[-1] == "/data"


def test_a_change_of_the_source_leaves_the_layer_of_dependencies():
    names = [(i.name, i.value) for i in instructions()]
    dependencies = names.index(("RUN", dependency_step()))
    before = [value for name, value in names[:dependencies] if name == "COPY"]
    after = [value for name, value in names[dependencies:] if name == "COPY"]
    assert not any("streamfeat" in value.split() for value in before)
    assert any("streamfeat" in value.split() for value in after)


def test_what_is_copied_is_there_and_not_ignored():
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]

    def sent(path):
        kept = True
        for rule in rules:
            pattern = rule.lstrip("!").removeprefix("**/")
            if fnmatch.fnmatch(path, pattern) or fnmatch.fnmatch(Path(path).name, pattern):
                kept = rule.startswith("!")
        return kept

    for value in only("COPY"):
        for source in value.split()[:-1]:
            assert (ROOT / source).exists() and sent(source), source
    assert not any(map(sent, (".venv", ".git", "demo", "videos", "out.h5", "streamfeat/__pycache__")))


def test_every_requirement_of_the_image_is_pinned():
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    asked = [re.split(r"[><=;]", line)[0].strip().lower() for line in requirements("cuda").splitlines()]
    assert len(asked) > 8 and set(asked) <= pinned
    unnamed = {"--no-cache-dir", "--only-binary", ":all:", "--constraint", "--requirement"}
    named = set(dependency_step().split("&&")[-1].split()[2:]) - unnamed
    assert named - {"constraints.txt", "requirements.txt"} <= pinned


def requirements(device):
    done = subprocess.run(
        [sys.executable, ROOT / "docker" / "requirements.py", device], stdin=(ROOT / "setup.cfg").open(), text=True,
        capture_output=True,
    )
    return done.stdout if done.returncode == 0 else done.stderr


def test_a_cpu_image_has_nothing_of_nvidia():
    gpu, cpu = requirements("cuda").splitlines(), requirements("cpu").splitlines()
    assert [line for line in gpu if line not in cpu] == [line for line in gpu if line.startswith("nvidia-")] != []
    assert "DEVICE must be one of cuda, cpu" in requirements("tpu")


def test_compose():
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    gpu, cpu = compose["services"]["streamfeat"], compose["services"]["cpu"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", "all", ["gpu"])
    assert "deploy" not in cpu and cpu["profiles"] == ["cpu"] and cpu["build"]["args"] == {"DEVICE": "cpu"}
    for service in (gpu, cpu):
        assert service["user"] == "${STREAMFEAT_USER:-1000:1000}"
        assert "${PWD}:/data" in service["volumes"]
        volumes = [volume.split(":")[0] for volume in service["volumes"]]
        assert set(volumes) - {"${PWD}"} == set(compose["volumes"])
        build = service["build"]
        context = (ROOT / "docker" / build["context"]).resolve()
        assert context == ROOT and (context / build["dockerfile"]) == DOCKERFILE
    # the only places that are written to
    assert "HOME" in environment() and {volume.split(":")[1] for volume in gpu["volumes"]} == {"/data", "/cache"}
    assert all(value.startswith("/cache") for name, value in environment().items() if name in ("HOME", "HF_HOME"))


# what is run


def run_step(step, folder, pip, **build_arguments):
    """A RUN of the Dockerfile, in ``folder`` and with ``pip`` for pip. Returns what it said."""
    tools = folder / "tools"
    tools.mkdir()
    (tools / "pip").write_text(pip)
    (tools / "pip").chmod(0o755)
    (tools / "python").symlink_to(sys.executable)
    return subprocess.run(
        ["sh", "-c", step], cwd=folder, text=True, capture_output=True,
        env={"PATH": f"{tools}:/usr/bin:/bin", **arguments(), **build_arguments},
    )


@pytest.mark.parametrize("device", ["cuda", "cpu", "tpu"])
def test_the_step_that_installs_dependencies(tmp_path, device):
    for name in ("setup.cfg", "constraints.txt", "docker/requirements.py"):
        shutil.copy(ROOT / name, tmp_path)
    done = run_step(dependency_step(), tmp_path, '#!/bin/sh\necho "$@"\n', DEVICE=device)
    calls = done.stdout.splitlines()
    if device == "tpu":
        assert done.returncode != 0 and calls == []
        return
    assert done.returncode == 0
    assert (tmp_path / "requirements.txt").read_text() == requirements(device)
    index = arguments()["TORCH_CPU_INDEX"]
    assert sum(f"--index-url {index} torch torchvision" in call for call in calls) == (device == "cpu")
    assert "--requirement requirements.txt" in calls[-1]
    assert all("--constraint constraints.txt" in call for call in calls)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """The source step, run as the image runs it: where streamfeat is then installed."""
    folder = tmp_path_factory.mktemp("image")
    for value in only("COPY"):
        for source in value.split()[:-1]:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, folder / source, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, folder)
    pip = f'#!/bin/sh\nexec {sys.executable} -m pip "$@" --quiet --disable-pip-version-check --target {folder}/site\n'
    done = run_step(source_step(), folder, pip)
    assert done.returncode == 0, done.stderr
    assert not (folder / "build").exists() and not list(folder.glob("*.egg-info"))
    shutil.rmtree(folder / "streamfeat")  # what runs below is what was installed
    return folder


def in_image(image, data, cache, *command):
    """A command as a container would run it for ``--user``: nothing but the image's environment, a strange user."""
    as_stranger = []
    if os.getuid() == 0:
        # May read all, as a user of the image may; the tests' Python can be below a folder that is root's alone.
        as_stranger = [
            "setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups",
            "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search",
        ]
        for folder in (data, cache):
            os.chown(folder, STRANGER, STRANGER)
    variables = {
        name: value.replace("/cache", str(cache)).replace("$DEVICE", "cpu") for name, value in environment().items()
    }
    return subprocess.run(
        [*as_stranger, *command], cwd=data, text=True, capture_output=True,
        env={"PATH": f"{image}/site/bin:/usr/bin:/bin", "PYTHONPATH": f"{image}/site", **variables},
    )


@pytest.fixture
def mounts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mounts")
    for name in ("data", "cache"):
        (folder / name).mkdir()
    return folder / "data", folder / "cache"


def test_entry_point_as_a_stranger(image, mounts):
    data, cache = mounts
    entry = json.loads(only("ENTRYPOINT")[0])
    done = in_image(image, data, cache, *entry, *json.loads(only("CMD")[0]))
    assert done.returncode == 0 and "extract" in done.stdout
    videos = data / "videos"
    videos.mkdir()
    write_video(videos / "a.mp4", frames=16)
    done = in_image(
        image, data, cache, *entry, "extract", "--model", "vit_tiny", "--weights", "random", "videos", "out.h5"
    )
    assert done.returncode == 0, done.stderr
    assert "1 video done" in done.stderr
    assert (data / "out.h5").stat().st_uid == (STRANGER if os.getuid() == 0 else os.getuid())


def test_health_check_as_a_stranger(image, mounts):
    (check,) = only("HEALTHCHECK")
    command = json.loads(check[check.index("CMD") + 3 :])
    done = in_image(image, *mounts, *command)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == "extract on the CPU works"
    assert str(mounts[1] / "huggingface") in done.stdout
