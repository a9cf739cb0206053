"""Floating-point environments that are not the usual one."""

import ctypes
import os
import platform
import shlex
import shutil
import subprocess
from contextlib import contextmanager

import pytest

EXCHANGE = {
    "x86_64": """
unsigned exchange(unsigned mode)
{
    const unsigned before = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(mode);
    return before;
}
""",
    "aarch64": """
unsigned exchange(unsigned mode)
{
    unsigned long before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"((unsigned long)mode) : "memory");
    return (unsigned)before;
}
""",
}
FLAGS = 0x3F if platform.machine() == "x86_64" else 0  # sticky: any arithmetic raises them
MODES = {
    "x86_64": {
        "denormals are zero": 0x1FC0,
        "flush to zero": 0x9F80,
        "down": 0x3F80,
        "up": 0x5F80,
        "towards zero": 0x7F80,
        "flushed and up": 0xDFC0,
    },
    "aarch64": {"flush to zero": 1 << 24, "up": 1 << 22, "down": 2 << 22, "towards zero": 3 << 22},
}.get(platform.machine(), {})


@pytest.fixture(scope="session")
def exchange_mode(tmp_path_factory):
    """Set this thread's floating-point environment, compiled from C; return what it was."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if shutil.which(compiler[0]) is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("mode")
    source, target = folder / "mode.c", folder / "mode.so"
    source.write_text(EXCHANGE[platform.machine()], encoding="utf-8")
    subprocess.run([*compiler, "-O1", "-fPIC", "-shared", str(source), "-o", str(target)], check=True)
    exchange = ctypes.CDLL(str(target)).exchange
    exchange.restype, exchange.argtypes = ctypes.c_uint, [ctypes.c_uint]
    return exchange


@pytest.fixture(params=MODES)
def unusual_mode(request, exchange_mode):
    """Make a context manager in which this thread computes in another environment, which must still be there at its
    end."""
    mode = MODES[request.param]

    @contextmanager
    def block():
        usual = exchange_mode(mode)
        try:
            yield
        finally:
            found = exchange_mode(usual)
        assert found & ~FLAGS == mode

    return block
