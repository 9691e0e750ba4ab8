"""Compiles the C kernels where there is a compiler; everything else stands in pyproject.toml.

A failure never stops the installation: the kernels are then compiled at first use, or plain torch takes their place.
"""

import importlib.util
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

PACKAGE = "hf_autosparse.kernels"


def builder():
    """hf_autosparse/kernels/cpu/build.py, without importing the package: torch is not there yet."""
    path = Path(__file__).parent / PACKAGE.replace(".", "/") / "cpu" / "build.py"
    spec = importlib.util.spec_from_file_location("autosparse_build", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildKernels(build_ext):
    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split(".")[:-1], builder().library_name()))

    def build_extension(self, ext):
        build = builder()
        try:
            build.build(Path(self.get_ext_fullpath(ext.name)))
        except (build.BuildError, OSError) as error:
            raise CompileError(f"the C kernels are left to be compiled at first use: {error}") from error


class AnyPython(bdist_wheel):
    """The library knows nothing of Python: one wheel serves all versions."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension(f"{PACKAGE}.library", sources=[], optional=True)],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": AnyPython},
)
