"""The parts that need a compiler; all else about the package is in setup.cfg."""

import os
import platform

from setuptools import Extension, setup

KERNELS = "streamfeat/model/kernels"
FLAGS = ["-O3", "-fvisibility=hidden"] if os.name == "posix" else []

# optional: without a compiler streamfeat is installed all the same, and does by torch and numpy what these do
resize = Extension(
    "streamfeat.decode._resize", ["streamfeat/decode/resize.c"],
    # a fused multiply-add would round otherwise than the definition
    extra_compile_args=[*FLAGS, "-ffp-contract=off"] if FLAGS else [], optional=True,
)
int8 = Extension(
    "streamfeat.model.kernels._int8", [f"{KERNELS}/{name}.c" for name in ("attention", "block", "linear")],
    depends=[f"{KERNELS}/{name}.h" for name in ("attention", "linear", "vectors")], extra_compile_args=FLAGS,
    optional=True,
)
setup(ext_modules=[resize, int8] if platform.machine() in ("x86_64", "AMD64") else [resize])
