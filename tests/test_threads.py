import asyncio
import os
import re
import subprocess
import sys
import threading
import timeit
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import refbn
from refbn import _threads, _validate

HEADER = Path(__file__).parents[1] / "_ext" / "threads.h"


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    """Each test begins as a fresh process does, and leaves nothing behind."""
    monkeypatch.delenv("REFBN_NUM_THREADS", raising=False)
    monkeypatch.setattr(_threads, "_process", 0)
    monkeypatch.setattr(_threads, "_default", 0)


def available_cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def in_fresh_process(code, **environment):
    kept = {name: value for name, value in os.environ.items() if name != "REFBN_NUM_THREADS"}
    command = [sys.executable, "-c", f"import refbn\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, env=kept | environment)


# ---- values --------------------------------------------------------------------------------------------------------


def test_default_is_the_cores_of_this_process():
    assert refbn.get_num_threads() == min(available_cores(), 1024)


def test_default_without_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 5, raising=False)
    assert _threads._cores() == 5
    monkeypatch.delattr(os, "process_cpu_count")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert _threads._cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert _threads._cores() == 1


def test_default_has_the_limit(monkeypatch):
    monkeypatch.setattr(_threads, "_cores", lambda: 5000)
    assert refbn.get_num_threads() == 1024


@pytest.mark.parametrize("n", [1, 7, 1024, np.int64(3), np.uint8(4)])
def test_set(n):
    assert refbn.set_num_threads(n) is None
    assert refbn.get_num_threads() == n
    assert type(refbn.get_num_threads()) is int


BAD_NUMBERS = [0, -1, 1025, 10**400, -(10**5000), np.int64(0), 2.0, "2", None, True, np.array([2])]


@pytest.mark.parametrize("n", BAD_NUMBERS, ids=lambda n: f"{type(n).__name__}-{str(n)[:6] if n != -(10**5000) else ''}")
@pytest.mark.parametrize("function", [refbn.set_num_threads, refbn.num_threads])
def test_bad_numbers_change_nothing(function, n):
    refbn.set_num_threads(3)
    with pytest.raises(refbn.RefbnError) as caught:
        function(n)
    assert (caught.value.argument, caught.value.label) == ("n", "C22")
    integer = isinstance(n, (int, np.integer)) and not isinstance(n, bool)
    assert isinstance(caught.value, refbn.DomainError if integer else refbn.DtypeError)
    assert refbn.get_num_threads() == 3


@pytest.mark.skipif(not HEADER.exists(), reason="not a checkout")
def test_limit_is_the_core_s():
    limit = re.search(r"REFBN_MAX_THREADS = (\d+)", HEADER.read_text(encoding="utf-8"))
    assert int(limit[1]) == _validate.THREAD_LIMIT


# ---- blocks --------------------------------------------------------------------------------------------------------


def test_blocks_nest():
    refbn.set_num_threads(5)
    with refbn.num_threads(3):
        assert refbn.get_num_threads() == 3
        with refbn.num_threads(1):
            assert refbn.get_num_threads() == 1
        assert refbn.get_num_threads() == 3
    assert refbn.get_num_threads() == 5


def test_block_ends_with_an_exception():
    refbn.set_num_threads(5)
    with pytest.raises(KeyError), refbn.num_threads(3):
        raise KeyError
    assert refbn.get_num_threads() == 5


def test_block_outlives_a_set():
    with refbn.num_threads(3):
        refbn.set_num_threads(6)
        assert refbn.get_num_threads() == 3
    assert refbn.get_num_threads() == 6


def test_making_a_block_does_not_enter_it():
    refbn.set_num_threads(5)
    block = refbn.num_threads(3)
    assert refbn.get_num_threads() == 5
    with block:
        assert refbn.get_num_threads() == 3


def test_block_holds_for_its_own_thread():
    refbn.set_num_threads(5)
    entered, seen = threading.Event(), []

    def look():
        entered.wait()
        seen.append(refbn.get_num_threads())
        with refbn.num_threads(2):
            seen.append(refbn.get_num_threads())

    thread = threading.Thread(target=look)
    thread.start()  # before the block: from Python 3.14 on a thread may begin with its starter's context
    with refbn.num_threads(3):
        entered.set()
        thread.join()
        assert refbn.get_num_threads() == 3
    assert seen == [5, 2]


def test_set_holds_for_all_threads():
    with ThreadPoolExecutor(1) as pool:
        pool.submit(refbn.set_num_threads, 9).result()
        assert refbn.get_num_threads() == 9
        refbn.set_num_threads(8)
        assert pool.submit(refbn.get_num_threads).result() == 8


def test_block_holds_for_its_own_task():
    refbn.set_num_threads(5)

    async def inside(turn, n):
        with refbn.num_threads(n):
            await turn.wait()
            return refbn.get_num_threads()

    async def main():
        turn = asyncio.Event()
        tasks = [asyncio.create_task(inside(turn, n)) for n in (2, 3)]
        await asyncio.sleep(0)
        outside = refbn.get_num_threads()
        turn.set()
        return [outside, *(await asyncio.gather(*tasks))]

    assert asyncio.run(main()) == [5, 2, 3]


# ---- the environment variable --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "count"), [("3", 3), (" 12 ", 12), ("1024", 1024), ("", available_cores())])
def test_variable(text, count):
    done = in_fresh_process("print(refbn.get_num_threads())", REFBN_NUM_THREADS=text)
    assert (done.stdout, done.stderr) == (f"{count}\n", "")


@pytest.mark.parametrize("text", ["0", "-2", "1025", "two", "2.0", "2,3", " ", "9" * 5000], ids=lambda text: text[:6])
def test_bad_variable_is_told_at_first_use(text):
    code = """
try:
    refbn.get_num_threads()
except refbn.DomainError as error:
    print(error.argument, error.label)
refbn.set_num_threads(2)
print(refbn.get_num_threads())
"""
    done = in_fresh_process(code, REFBN_NUM_THREADS=text)
    assert (done.stdout, done.stderr) == ("REFBN_NUM_THREADS C22\n2\n", "")


def test_variable_is_read_once(monkeypatch):
    monkeypatch.setenv("REFBN_NUM_THREADS", "3")
    assert refbn.get_num_threads() == 3
    monkeypatch.setenv("REFBN_NUM_THREADS", "4")
    assert refbn.get_num_threads() == 3


def test_variable_yields_to_what_the_program_says(monkeypatch):
    monkeypatch.setenv("REFBN_NUM_THREADS", "none")
    with refbn.num_threads(3):
        assert refbn.get_num_threads() == 3
    refbn.set_num_threads(4)
    assert refbn.get_num_threads() == 4


# ---- cost ----------------------------------------------------------------------------------------------------------


def test_reading_costs_little():
    """It stands before every pass: at most ten empty calls of a Python function, and commonly two."""
    refbn.get_num_threads()
    read = min(timeit.repeat(refbn.get_num_threads, number=20_000, repeat=7))
    empty = min(timeit.repeat(lambda: None, number=20_000, repeat=7))
    assert read < 10 * empty
