"""Prints what setup.cfg requires, so that the image's layer of dependencies outlives changes of the source.

python docker/requirements.py cuda|cpu < setup.cfg
"""

import configparser
import sys

DEVICES = ("cuda", "cpu")


def requirements(setup_cfg: str, device: str) -> list[str]:
    """Of streamfeat on ``device``; on ``cpu`` without NVIDIA's packages, which only a GPU run uses."""
    config = configparser.ConfigParser()
    config.read_string(setup_cfg)
    lines = config["options"]["install_requires"].split("\n")
    return [line for line in lines if line and not (device == "cpu" and line.startswith("nvidia-"))]


if __name__ == "__main__":
    if sys.argv[1:] not in [[device] for device in DEVICES]:
        sys.exit(f"DEVICE must be one of {', '.join(DEVICES)}, not {' '.join(sys.argv[1:])!r}")
    print("\n".join(requirements(sys.stdin.read(), sys.argv[1])))
