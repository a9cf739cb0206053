/* The threads of threads.h: made for each call, joined before it returns. No pool, no state outside the call.
 *
 * The one file of the core that needs an operating system; without POSIX threads a team has one member.
 *
 * Test: pytest tests/backends/test_team.py
 */
#define _POSIX_C_SOURCE 200809L /* for pthread_sigmask and its like under -std=c11 */
#include "threads.h"

#include "environment.h"

typedef void refbn_body(refbn_team *team, void *argument);

static void refbn_run_body(refbn_team *team, refbn_body *body, void *argument)
{
    const refbn_environment before = refbn_environment_set();
#ifdef __GNUC__
    __asm__ volatile("" : "+r"(body) : : "memory"); /* unknown to the compiler, hence not inlined */
#endif
    body(team, argument);
    refbn_environment_restore(before);
}

static void refbn_alone_at_barrier(refbn_team *team)
{
    *team->next = 0;
}

static void refbn_run_alone(refbn_body *body, void *argument)
{
    ptrdiff_t next = 0;
    refbn_team team = {.rank = 0, .size = 1, .next = &next, .barrier = refbn_alone_at_barrier};
    refbn_run_body(&team, body, argument);
}

#if (defined(__unix__) || defined(__APPLE__)) && defined(__GNUC__)

#include <pthread.h>
#include <sched.h>
#include <signal.h>

enum {
    REFBN_STACK = 1 << 20, /* bytes; the default is as little as 128 KiB on some systems */
    REFBN_SPINS = 50,      /* looks at a barrier that keep the core: one or two microseconds */
    REFBN_YIELDS = 150,    /* then looks that offer it to others: some 50 microseconds, what waking costs */
    REFBN_LINE = 128       /* bytes that one core's write takes from the others */
};

/* The inner state of a team; it lives on the caller's stack. */
typedef struct {
    refbn_body *body;
    void *argument;
    int size; /* set before phase 1 */
    pthread_mutex_t lock;
    pthread_cond_t advanced;
    _Alignas(REFBN_LINE) unsigned phase; /* 0 while threads are made, then one more at each barrier */
    _Alignas(REFBN_LINE) int ranks;      /* given out so far */
    int arrived;                         /* at the barrier of this phase */
    _Alignas(REFBN_LINE) ptrdiff_t next;
} refbn_crew;

static void refbn_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Wait until `phase` is over: look a few times, since the others are mostly close; then sleep. After a while
 * the looks yield, because a member that shares the core with this one cannot come otherwise. */
static void refbn_wait(refbn_crew *crew, unsigned phase)
{
    for (int look = 0; look < REFBN_SPINS + REFBN_YIELDS; look++) {
        if (__atomic_load_n(&crew->phase, __ATOMIC_ACQUIRE) != phase)
            return;
        if (look < REFBN_SPINS)
            refbn_relax();
        else
            sched_yield();
    }
    pthread_mutex_lock(&crew->lock);
    while (__atomic_load_n(&crew->phase, __ATOMIC_RELAXED) == phase)
        pthread_cond_wait(&crew->advanced, &crew->lock);
    pthread_mutex_unlock(&crew->lock);
}

static void refbn_advance(refbn_crew *crew)
{
    pthread_mutex_lock(&crew->lock);
    __atomic_add_fetch(&crew->phase, 1, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&crew->advanced);
    pthread_mutex_unlock(&crew->lock);
}

static void refbn_barrier(refbn_team *team)
{
    refbn_crew *crew = team->shared;
    const unsigned phase = __atomic_load_n(&crew->phase, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&crew->arrived, 1, __ATOMIC_ACQ_REL) < crew->size) {
        refbn_wait(crew, phase);
        return;
    }
    __atomic_store_n(&crew->arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&crew->next, 0, __ATOMIC_RELAXED);
    refbn_advance(crew);
}

static void refbn_run_member(refbn_crew *crew, int rank)
{
    refbn_team team = {
        .rank = rank, .size = crew->size, .shared = crew, .next = &crew->next, .barrier = refbn_barrier};
    refbn_run_body(&team, crew->body, crew->argument);
}

static void *refbn_start(void *argument)
{
    refbn_crew *crew = argument;
    const int rank = __atomic_add_fetch(&crew->ranks, 1, __ATOMIC_RELAXED);
    refbn_wait(crew, 0);
    refbn_run_member(crew, rank);
    return NULL;
}

/* Make `wanted` threads, or as many as the system gives; return how many. A signal to the process is for the
 * caller's own threads, so these block all but those that a fault of their own raises. */
static int refbn_make_threads(int wanted, pthread_t *threads, refbn_crew *crew)
{
    int made = 0;
    pthread_attr_t attributes;
    sigset_t blocked, before;
    sigfillset(&blocked);
    sigdelset(&blocked, SIGSEGV);
    sigdelset(&blocked, SIGBUS);
    sigdelset(&blocked, SIGFPE);
    sigdelset(&blocked, SIGILL);
    if (pthread_attr_init(&attributes) != 0)
        return 0;
    if (pthread_attr_setstacksize(&attributes, REFBN_STACK) == 0 &&
        pthread_sigmask(SIG_SETMASK, &blocked, &before) == 0) {
        while (made < wanted && pthread_create(&threads[made], &attributes, refbn_start, crew) == 0)
            made++;
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    pthread_attr_destroy(&attributes);
    return made;
}

void refbn_parallel(int threads, void (*body)(refbn_team *team, void *argument), void *argument)
{
    pthread_t made[REFBN_MAX_THREADS - 1];
    refbn_crew crew = {.body = body, .argument = argument, .size = 1};
    if (threads > REFBN_MAX_THREADS)
        threads = REFBN_MAX_THREADS;
    if (threads < 2) {
        refbn_run_alone(body, argument);
        return;
    }
    pthread_mutex_init(&crew.lock, NULL);
    pthread_cond_init(&crew.advanced, NULL);
    crew.size += refbn_make_threads(threads - 1, made, &crew);
    refbn_advance(&crew); /* only now does anybody begin: the size is known */
    refbn_run_member(&crew, 0);
    for (int k = 0; k < crew.size - 1; k++)
        pthread_join(made[k], NULL);
    pthread_cond_destroy(&crew.advanced);
    pthread_mutex_destroy(&crew.lock);
}

#else

void refbn_parallel(int threads, void (*body)(refbn_team *team, void *argument), void *argument)
{
    (void)threads;
    refbn_run_alone(body, argument);
}

#endif
