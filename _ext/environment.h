/* The floating-point environment that the core's proofs assume: round to nearest even, subnormals kept, no
 * exception trapped. Freestanding.
 *
 * On x86 (SSE) and AArch64 it is set, and the caller's put back bit for bit, sticky flags included. Elsewhere
 * nothing is changed, and refbn_environment_available tells whether it is there anyway. What runs between set
 * and restore belongs in a function that the compiler cannot inline: it may move arithmetic across both.
 */
#ifndef REFBN_ENVIRONMENT_H
#define REFBN_ENVIRONMENT_H

#include <stdint.h>

typedef struct {
    uint64_t control, status; /* x86: both are MXCSR, in control */
} refbn_environment;

/* Set the environment of this thread; return what it was. */
static inline refbn_environment refbn_environment_set(void)
{
    refbn_environment before = {0, 0};
#if defined(__GNUC__) && defined(__SSE2__)
    before.control = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(0x1F80); /* all exceptions masked, no flag, nearest, neither FTZ nor DAZ */
#elif defined(__GNUC__) && defined(__aarch64__)
    __asm__ volatile("mrs %0, fpcr" : "=r"(before.control));
    __asm__ volatile("mrs %0, fpsr" : "=r"(before.status));
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0) : "memory");
#endif
    return before;
}

/* Put back what refbn_environment_set returned, on the same thread. */
static inline void refbn_environment_restore(refbn_environment before)
{
#if defined(__GNUC__) && defined(__SSE2__)
    __builtin_ia32_ldmxcsr((unsigned)before.control);
#elif defined(__GNUC__) && defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(before.control) : "memory");
    __asm__ volatile("msr fpsr, %0" : : "r"(before.status) : "memory");
#else
    (void)before;
#endif
}

typedef union {
    uint64_t bits;
    double number;
} refbn_environment_number;

/* Whether binary64 arithmetic on this thread is now as the proofs assume (exceptions are not looked at).
 * Operands and results go through memory and are made and judged as integers, so that neither the compiler's
 * own arithmetic nor its reordering answers in place of the machine's. */
static inline int refbn_environment_check(void)
{
    volatile refbn_environment_number one = {UINT64_C(0x3FF0000000000000)};
    volatile refbn_environment_number half = {UINT64_C(0x3FE0000000000000)};
    volatile refbn_environment_number half_ulp = {UINT64_C(0x3CA0000000000000)}; /* 2^-53 */
    volatile refbn_environment_number beyond_half_ulp = {UINT64_C(0x3CA0000000000001)};
    volatile refbn_environment_number two_to_52 = {UINT64_C(0x4330000000000000)};
    volatile refbn_environment_number normal = {UINT64_C(0x0010000000000000)}; /* the least, 2^-1022 */
    volatile refbn_environment_number tiny = {1};                              /* 2^-1074 */
    volatile refbn_environment_number tie, above_tie, grown, halved;
    tie.number = one.number + half_ulp.number;
    above_tie.number = one.number + beyond_half_ulp.number;
    grown.number = two_to_52.number * tiny.number;
    halved.number = normal.number * half.number;
    const int to_even = tie.bits == one.bits;                  /* neither up nor away from zero */
    const int up = above_tie.bits == one.bits + 1;             /* nor truncated, nor to a wider format */
    const int operand_counts = grown.bits == normal.bits;      /* not DAZ */
    const int result_is_kept = halved.bits == normal.bits / 2; /* not FTZ */
    return to_even && up && operand_counts && result_is_kept;
}

/* Whether refbn_environment_set establishes the environment, or it is there already. */
static inline int refbn_environment_available(void)
{
    const refbn_environment before = refbn_environment_set();
    const int sound = refbn_environment_check();
    refbn_environment_restore(before);
    return sound;
}

#endif
