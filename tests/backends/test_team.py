"""The threads and the floating-point environment of the C core, compiled from the checkout with a driver in C."""

import ctypes
import os
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "_ext"
COMPILER = shutil.which(os.environ.get("CC", "cc"))

if not (SOURCES / "threads.c").exists():
    pytest.skip("no _ext/: this is not a checkout", allow_module_level=True)
if COMPILER is None or os.name != "posix":
    pytest.skip("no C compiler for POSIX threads", allow_module_level=True)

DRIVER = r"""
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <pthread.h>

/* pthread_create gives up after this many threads of one caller, if it is not negative. */
static __thread int creations_left = -1;

static int create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument)
{
    if (creations_left == 0)
        return EAGAIN;
    creations_left -= creations_left > 0;
    return pthread_create(thread, attributes, start, argument);
}

#define pthread_create create
#include "threads.c"
#undef pthread_create

/* ---- ranks and sizes ---- */

typedef struct {
    int runs[REFBN_MAX_THREADS], sizes[REFBN_MAX_THREADS], on_caller[REFBN_MAX_THREADS];
    pthread_t caller;
} roll;

static void answer(refbn_team *team, void *argument)
{
    roll *all = argument;
    __atomic_add_fetch(&all->runs[team->rank], 1, __ATOMIC_RELAXED);
    all->sizes[team->rank] = team->size;
    all->on_caller[team->rank] = pthread_equal(pthread_self(), all->caller) != 0;
}

/* The size of the team, if each rank below it ran once, with that size, and rank 0 alone on the caller's thread. */
int call_the_roll(int threads, int creations)
{
    roll all = {.caller = pthread_self()};
    creations_left = creations;
    refbn_parallel(threads, answer, &all);
    creations_left = -1;
    for (int rank = 0; rank < REFBN_MAX_THREADS; rank++) {
        const int member = rank < all.sizes[0];
        if (all.runs[rank] != member || all.sizes[rank] != (member ? all.sizes[0] : 0) ||
            all.on_caller[rank] != (rank == 0))
            return -1;
    }
    return all.sizes[0];
}

/* ---- barriers ---- */

typedef struct {
    int rounds, errors;
    int round_of[REFBN_MAX_THREADS]; /* plain memory: only a barrier makes it visible */
} march;

static void walk(refbn_team *team, void *argument)
{
    march *all = argument;
    for (int round = 1; round <= all->rounds; round++) {
        all->round_of[team->rank] = round;
        team->barrier(team);
        for (int rank = 0; rank < team->size; rank++)
            if (all->round_of[rank] != round)
                __atomic_add_fetch(&all->errors, 1, __ATOMIC_RELAXED);
        team->barrier(team);
    }
}

int errors_of_barriers(int threads, int rounds)
{
    march all = {.rounds = rounds};
    refbn_parallel(threads, walk, &all);
    return all.errors;
}

/* ---- the counter ---- */

enum { MOST_INDICES = 5000 };

typedef struct {
    int rounds, count, errors;
    int taken[MOST_INDICES];
} harvest;

static void gather(refbn_team *team, void *argument)
{
    harvest *all = argument;
    for (int round = 1; round <= all->rounds; round++) {
        for (ptrdiff_t index; (index = refbn_team_next(team)) < all->count;)
            __atomic_add_fetch(&all->taken[index], 1, __ATOMIC_RELAXED);
        team->barrier(team); /* starts the count again */
        for (int index = team->rank; index < all->count; index += team->size)
            __atomic_add_fetch(&all->errors, all->taken[index] != round, __ATOMIC_RELAXED);
        team->barrier(team);
    }
}

int errors_of_counter(int threads, int rounds, int count)
{
    harvest all = {.rounds = rounds, .count = count};
    refbn_parallel(threads, gather, &all);
    return all.errors;
}

/* ---- teams within teams ---- */

static void nest(refbn_team *team, void *argument)
{
    int *answers = argument;
    answers[team->rank] = call_the_roll(3, -1) == 3 && errors_of_barriers(3, 5) == 0;
}

int errors_of_nesting(int threads)
{
    int answers[REFBN_MAX_THREADS] = {0}, errors = threads;
    refbn_parallel(threads, nest, answers);
    for (int rank = 0; rank < threads; rank++)
        errors -= answers[rank];
    return errors;
}

/* ---- signals ---- */

static void look_at_mask(refbn_team *team, void *argument)
{
    const int wanted = team->rank > 0; /* rank 0 keeps the caller's mask */
    int *errors = argument;
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    const int right = sigismember(&mask, SIGINT) == wanted && sigismember(&mask, SIGUSR1) == wanted &&
                      !sigismember(&mask, SIGSEGV);
    __atomic_add_fetch(errors, !right, __ATOMIC_RELAXED);
}

int errors_of_signals(int threads)
{
    int errors = 0;
    sigset_t unblocked, before, after;
    sigemptyset(&unblocked);
    sigaddset(&unblocked, SIGINT);
    sigaddset(&unblocked, SIGUSR1);
    pthread_sigmask(SIG_UNBLOCK, &unblocked, &before);
    refbn_parallel(threads, look_at_mask, &errors);
    pthread_sigmask(SIG_SETMASK, &before, &after);
    return errors + sigismember(&after, SIGINT) + sigismember(&after, SIGUSR1);
}

/* ---- the environment ---- */

#if defined(__SSE2__)
enum { CLEAN = 0x1F80, DAZ = 0x0040, FTZ = 0x8000, DOWN = 0x2000, UP = 0x4000, TOWARDS_ZERO = 0x6000 };
enum { FLAGS = 0x0011 }; /* invalid, underflow */
static const unsigned modes[] = {CLEAN, CLEAN | DAZ, CLEAN | FTZ, CLEAN | DOWN, CLEAN | UP, CLEAN | TOWARDS_ZERO,
                                 CLEAN | DAZ | FTZ | UP | FLAGS, CLEAN & ~0x0200 /* traps a division by zero */};
static uint64_t get_mode(void) { return __builtin_ia32_stmxcsr(); }
static void set_mode(uint64_t mode) { __builtin_ia32_ldmxcsr((unsigned)mode); }
#elif defined(__aarch64__)
enum { CLEAN = 0, FTZ = 1 << 24, UP = 1 << 22, DOWN = 2 << 22, TOWARDS_ZERO = 3 << 22 };
static const unsigned modes[] = {CLEAN, FTZ, DOWN, UP, TOWARDS_ZERO, FTZ | UP};
static uint64_t get_mode(void)
{
    uint64_t control, status;
    __asm__ volatile("mrs %0, fpcr" : "=r"(control));
    __asm__ volatile("mrs %0, fpsr" : "=r"(status));
    return status << 32 | control;
}
static void set_mode(uint64_t mode)
{
    __asm__ volatile("msr fpcr, %0" : : "r"(mode & 0xFFFFFFFF));
    __asm__ volatile("msr fpsr, %0" : : "r"(mode >> 32));
}
#else
enum { CLEAN = 0 };
static const unsigned modes[] = {CLEAN};
static uint64_t get_mode(void) { return CLEAN; }
static void set_mode(uint64_t mode) { (void)mode; }
#endif

int number_of_modes(void)
{
    return (int)(sizeof modes / sizeof *modes);
}

static void compute(refbn_team *team, void *argument)
{
    volatile double zero = 0.0, tiny = 0x1p-1074, three = 3.0;
    int *errors = argument;
    const int right = (get_mode() & 0xFFFFFFFF) == CLEAN && refbn_environment_check();
    volatile double raises = 1.0 / zero + zero / zero + tiny / three; /* sticky flags, and no trap */
    (void)raises;
    (void)team;
    __atomic_add_fetch(errors, !right, __ATOMIC_RELAXED);
}

/* Errors of a call from a thread in that mode: bit 0 in the body, bit 1 the mode afterwards, bit 2 of
 * refbn_environment_available; bit 3 is what refbn_environment_check says of the mode. */
int in_mode(int index, int threads)
{
    const uint64_t before = get_mode();
    int errors = 0;
    set_mode(modes[index]);
    const uint64_t chosen = get_mode();
    refbn_parallel(threads, compute, &errors);
    const int kept = get_mode() == chosen;
    const int available = refbn_environment_available() && get_mode() == chosen;
    const int sound = refbn_environment_check();
    set_mode(before);
    return (errors != 0) | !kept << 1 | !available << 2 | sound << 3;
}
"""


@pytest.fixture(scope="module", params=["-O1", "-O3"])  # which order arithmetic differently around its environment
def library(request, tmp_path_factory):
    """The path of the driver, compiled as a shared library."""
    folder = tmp_path_factory.mktemp("team")
    source, target = folder / "driver.c", folder / "driver.so"
    source.write_text(DRIVER, encoding="utf-8")
    flags = ["-std=c11", request.param, "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-pthread", f"-I{SOURCES}"]
    subprocess.run([COMPILER, *flags, str(source), "-o", str(target)], check=True)
    return target


@pytest.fixture(scope="module")
def driver(library):
    return ctypes.CDLL(str(library))


@pytest.mark.parametrize("threads", [1, 2, 7, 64])
def test_every_rank_runs_once(driver, threads):
    for _ in range(20):
        assert driver.call_the_roll(threads, -1) == threads


@pytest.mark.parametrize(("threads", "size"), [(0, 1), (-5, 1), (-(2**31), 1), (2**31 - 1, 3)])
def test_size_is_at_least_one_whatever_is_asked(driver, threads, size):
    assert driver.call_the_roll(threads, 2) == size


def test_size_has_a_limit(driver):
    assert 5 <= driver.call_the_roll(2**31 - 1, 1100) <= 1024


@pytest.mark.parametrize("creations", [0, 1, 4])
def test_fewer_members_when_the_system_gives_no_more_threads(driver, creations):
    assert driver.call_the_roll(7, creations) == creations + 1


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_barrier_orders(driver, threads):
    assert driver.errors_of_barriers(threads, 500) == 0


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 5000])
def test_counter_gives_each_index_once(driver, threads, count):
    assert driver.errors_of_counter(threads, 20, count) == 0


def test_teams_within_teams(driver):
    assert driver.errors_of_nesting(4) == 0


def test_several_callers_at_once(driver):
    def call(index):
        return driver.call_the_roll(2 + index % 3, -1) - (2 + index % 3), driver.errors_of_counter(3, 5, 500)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(call, range(40))) == [(0, 0)] * 40


def test_signals_go_to_the_caller_s_threads(driver):
    assert driver.errors_of_signals(3) == 0


def test_child_of_a_fork(library):
    """In a process of its own, with teams at work on another thread at the moment of the fork."""
    script = """
        import ctypes, os, sys, threading
        driver = ctypes.CDLL(sys.argv[1])
        assert driver.call_the_roll(3, -1) == 3
        done = threading.Event()

        def keep_working():
            while not done.is_set():
                assert driver.errors_of_barriers(3, 20) == 0

        worker = threading.Thread(target=keep_working)
        worker.start()
        for _ in range(20):
            child = os.fork()
            if child == 0:
                os._exit(driver.call_the_roll(3, -1) != 3 or driver.errors_of_barriers(3, 20))
            assert os.waitpid(child, 0)[1] == 0
        done.set()
        worker.join()
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), str(library)]
    subprocess.run(command, check=True, timeout=120)


@pytest.mark.parametrize("threads", [1, 3])
def test_members_compute_in_the_assumed_environment(driver, threads):
    """Whatever the caller's is, and it is put back with its sticky flags; only the clean mode passes the check."""
    modes = range(driver.number_of_modes())
    trapping = {7} if driver.number_of_modes() == 8 else set()  # rounds as it should, which the check looks at
    for index in modes:
        outcome = driver.in_mode(index, threads)
        assert outcome == (8 if index == 0 or index in trapping else 0), f"mode {index}: {outcome:#b}"
