"""The one part that needs a compiler; all else about the package is in setup.cfg."""

import platform

from setuptools import Extension, setup

KERNELS = "streamfeat/model/kernels"

setup(
    ext_modules=[
        Extension(
            "streamfeat.model.kernels._int8",
            [f"{KERNELS}/{name}.c" for name in ("attention", "block", "linear")],
            depends=[f"{KERNELS}/{name}.h" for name in ("attention", "linear", "vectors")],
            extra_compile_args=["-O3", "-fvisibility=hidden"],
            # without a compiler streamfeat is installed all the same, and --precision int8 goes through torch
            optional=True,
        )
    ]
    if platform.machine() in ("x86_64", "AMD64")
    else []
)
