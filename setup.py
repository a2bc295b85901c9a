"""The native kernels, compiled once per vector width, and left out where there is no C++ compiler.

A plain C interface that is loaded with ctypes: neither torch nor Python headers are needed.
"""

import platform

from setuptools import Extension, setup

SOURCES = [f"msssm/scan/csrc/{name}.cpp" for name in ("selective", "lti", "decomposition")]
# They come last, after those of CXXFLAGS: the kernels round by adding and subtracting a large number, tell NaN from
# numbers, and sum in a fixed order, all of which -ffast-math and its parts would optimise away.
FLAGS = [
    "-pthread",
    "-fopenmp-simd",
    "-fno-fast-math",
    "-fno-unsafe-math-optimizations",
    "-fno-associative-math",
    "-fno-reciprocal-math",
    "-fno-finite-math-only",
    "-fno-math-errno",
    "-fno-trapping-math",
]
VARIANTS = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    VARIANTS["avx2"] = ["-mavx2", "-mfma"]
    VARIANTS["avx512"] = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]

setup(
    ext_modules=[
        Extension(
            f"msssm.scan.csrc.{variant}",
            SOURCES,
            extra_compile_args=["-O3", "-std=c++17", *FLAGS, *flags],
            extra_link_args=["-pthread"],
            depends=[f"msssm/scan/csrc/{name}.h" for name in ("common", "decomposition", "exponential")],
            optional=True,
        )
        for variant, flags in VARIANTS.items()
    ]
)
