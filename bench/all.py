"""All benchmarks, one after another: in full into ``bench/results/`` and the README, or quickly, for a look.

    python -m bench.all [VIDEO ...]     # some half an hour on two cores; keep the machine quiet
    python -m bench.all --quick         # less of everything; only prints
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from bench import report

SCRIPTS = ("encode", "decode", "extract", "scale")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", type=Path, help="real ones, for the decoders, besides the made ones")
    parser.add_argument("--quick", action="store_true", help="less of everything, for a first look; nothing is kept")
    options = parser.parse_args(arguments)
    failed, spent = [], {}
    for name in SCRIPTS:
        command = [sys.executable, "-m", f"bench.{name}"]
        command += ["--quick"] if options.quick else ["--json", str(report.RESULTS / f"{name}.json")]
        command += map(str, options.videos if name == "decode" else [])
        print(f"== bench.{name}", flush=True)
        started = time.monotonic()
        if subprocess.run(command, cwd=report.ROOT).returncode:
            failed.append(name)
        spent[name] = time.monotonic() - started
    print("seconds: " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in spent.items()))
    if failed:
        sys.exit(f"bench.all: failed: {', '.join(failed)}")
    if not options.quick:
        report.main([])


if __name__ == "__main__":
    main()
