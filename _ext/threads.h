/* A team of threads for one call: every member runs the same body.
 *
 * Freestanding, like the core that includes it: a body knows its team through this header alone, and the
 * threads themselves are in threads.c.
 */
#ifndef REFBN_THREADS_H
#define REFBN_THREADS_H

#include <stddef.h>

enum { REFBN_MAX_THREADS = 1024 };

typedef struct refbn_team refbn_team;

/* What one member sees of its team. */
struct refbn_team {
    int rank, size;                    /* ranks are 0 to size - 1; rank 0 is the caller's own thread */
    void *shared;                      /* the team's inner state, one for all members */
    ptrdiff_t *next;                   /* the counter of refbn_team_next, one for all members */
    void (*barrier)(refbn_team *team); /* waits for all members; every member must come to each barrier */
};

/* The next index that no member has had yet: 0, 1, ... Each barrier starts the count at 0 again, while all
 * members are in it. Only a barrier shows one member what another one wrote; this does not. */
static inline ptrdiff_t refbn_team_next(refbn_team *team)
{
#ifdef __GNUC__
    return __atomic_fetch_add(team->next, 1, __ATOMIC_RELAXED);
#else
    return (*team->next)++; /* no threads there */
#endif
}

/* Run `body` on `threads` threads, the caller's among them, each in the environment of environment.h; return
 * when all are done. The threads are made for this call and joined, so that it may be called from several
 * threads at once, from within a body, and in the child of a fork. The team is smaller than `threads` where
 * the system gives fewer; its size is 1 to REFBN_MAX_THREADS whatever `threads` is. */
void refbn_parallel(int threads, void (*body)(refbn_team *team, void *argument), void *argument);

#endif
