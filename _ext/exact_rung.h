/* The last rung of the ladder: what no floating-point rung decided is decided in exact integers.
 *
 * A group's answers are computed in three steps: `begin`, then `gather` its elements (in any order and in any
 * pieces; pieces gathered elsewhere are merged in), then `solve`; from there on ask for vector results and
 * elements. Every answer is the exact real result rounded once, to nearest even, or what the rules R1-R6 of
 * refbn/backends/_contract.py say where there is no real result, returned as the binary64 number equal to it.
 * Nothing here depends on the floating-point environment, and nothing changes it.
 *
 * Nothing is allocated; a group is the caller's memory, used by one thread at a time, and a call needs less
 * than 128 KiB of stack. Counts are below 2^40.
 *
 * The formulas: exact_passes.h. The arithmetic, and why REFBN_EXACT_LIMBS suffice: exact.h.
 *
 * Test: pytest tests/backends/test_exact_rung.py
 */
#ifndef REFBN_EXACT_RUNG_H
#define REFBN_EXACT_RUNG_H

#include "refbn.h"

enum {
    REFBN_EXACT_LIMBS = 408,
    REFBN_EXACT_GROUP_BYTES = 128 * 1024, /* a group is no larger */
    REFBN_EXACT_SUM_PARTS = 68,
    REFBN_EXACT_PRODUCT_PARTS = 134,
    REFBN_EXACT_MEMOS = 256
};

/* sign * sum limb[i] 2^(64 (exponent + i)). Neither the first nor the last of `length` limbs is 0; zero has
 * sign 0 and length 0. */
typedef struct {
    int sign, length, exponent;
    uint64_t limb[REFBN_EXACT_LIMBS];
} refbn_exact_number;

/* sign * (hi 2^64 + lo) 2^(top - 128), hi >= 2^63: the leading bits of a number, truncated. */
typedef struct {
    uint64_t hi, lo;
    int sign, top;
} refbn_exact_leading;

/* The same with 192 bits, the first limb the last. */
typedef struct {
    uint64_t limb[3];
    int sign, top;
} refbn_exact_wide;

/* C sqrt(R), or C alone. */
typedef struct {
    refbn_exact_number factor, radicand;
    refbn_exact_number square; /* C^2 R, where has_square */
    refbn_exact_leading inverse;
    int rooted, has_square;
} refbn_exact_divisor;

/* hi 2^64 + lo, or that less 2^128: two's complement. */
typedef struct {
    uint64_t hi, lo;
} refbn_exact_pair;

/* An element's output as a function of the element: (k_x x + k_g g + k_u u + k_1) / divisor + offset. */
typedef struct {
    int present, undefined; /* the pass has this output; it is NaN for the whole group */
    int reads;              /* which of x, g, u the formula contains */
    int active;             /* which of them an element's value depends on */
    int zero;               /* every element is exactly 0 */
    int64_t decided, zeros; /* elements decided by exact numbers, and how many of them were exactly 0 */
    refbn_exact_number coefficient[4];
    refbn_exact_leading leading[4]; /* coefficient / divisor */
    refbn_exact_wide wide[4]; /* coefficient */
    refbn_exact_divisor divisor;
    refbn_exact_number offset;
    refbn_exact_leading leading_offset;
    refbn_exact_pair constant; /* k_1 / divisor + offset = constant 2^(constant_top - 124) */
    int constant_top;
    int rational; /* whether the divisor is rational: 1, 0, or -1 if that was not asked yet */
    refbn_exact_number root, rational_constant; /* if it is: the divisor, and k_1 + offset * divisor */
    /* Elements that took exact numbers, and their codes; where those are needed, elements often repeat. */
    uint64_t memo_key[REFBN_EXACT_MEMOS][3], memo[REFBN_EXACT_MEMOS];
    unsigned char memo_used[REFBN_EXACT_MEMOS];
    int memo_format; /* -1 if there are none */
} refbn_exact_form;

typedef struct {
    uint64_t part[2][REFBN_EXACT_SUM_PARTS];
} refbn_exact_sum;

typedef struct {
    uint64_t part[2][REFBN_EXACT_PRODUCT_PARTS];
} refbn_exact_product_sum;

/* What a group's formulas contain beside its elements. What a pass does not have is 0. */
typedef struct {
    double gamma, beta, mean, var, gamma_dot, beta_dot, mean_dot, var_dot;
} refbn_exact_parameters;

typedef struct {
    int pass, sums;
    int nan;  /* what is no number: tensors, parameters and the root, as bits REFBN_EXACT_HAS_... */
    int root; /* the sign of q; the formulas with a root are defined where it is 1 */
    uint64_t count;
    double eps;
    int sums_pending, products_pending; /* additions since the accumulators' carries were resolved */
    refbn_exact_sum sum[3];                 /* x, g, u */
    refbn_exact_product_sum product[4];     /* x x, g x, u x, u g */
    refbn_exact_parameters parameters;
    refbn_exact_number total[3];            /* S1, G1, U1 */
    refbn_exact_number spread;              /* m S2 - S1^2 */
    refbn_exact_number q;                   /* m^2 (var + eps), or var + eps with frozen statistics */
    refbn_exact_number gx, ux, ug;          /* W, V, Z, or GD, -, GU - mean_dot G1 with frozen statistics */
    refbn_exact_form form[2];
} refbn_exact_group;

enum {
    REFBN_EXACT_FORWARD,
    REFBN_EXACT_BACKWARD,
    REFBN_EXACT_JVP,
    REFBN_EXACT_DOUBLE_BACKWARD,
    REFBN_EXACT_HVP,
    REFBN_EXACT_INFERENCE, /* frozen statistics from here on */
    REFBN_EXACT_INFERENCE_BACKWARD,
    REFBN_EXACT_INFERENCE_JVP,
    REFBN_EXACT_INFERENCE_DOUBLE_BACKWARD,
    REFBN_EXACT_INFERENCE_HVP
};

enum { REFBN_EXACT_Y, REFBN_EXACT_DX }; /* per element; Y is y, y_dot or ddy */
enum {
    REFBN_EXACT_MEAN,
    REFBN_EXACT_VAR,
    REFBN_EXACT_INVSTD,
    REFBN_EXACT_DGAMMA,
    REFBN_EXACT_DBETA,
    REFBN_EXACT_DMEAN,
    REFBN_EXACT_DVAR
};

/* Start a group of `count` elements in all. */
void refbn_exact_begin(refbn_exact_group *group, int pass, uint64_t count, double eps);

/* Add n elements; g is dy, u is x_dot or ddx. NULL for a tensor that the pass does not have, or that no
 * output asked for contains: a sum with it stays 0. Passes whose outputs need no sums (INFERENCE,
 * INFERENCE_JVP) gather nothing, and need not be given anything. */
void refbn_exact_gather(refbn_exact_group *group, const double *x, const double *g, const double *u,
                        ptrdiff_t n);

/* Add what another group of the same pass has gathered. */
void refbn_exact_merge(refbn_exact_group *into, const refbn_exact_group *from);

/* All is gathered; compute what the answers are made of. */
void refbn_exact_solve(refbn_exact_group *group, const refbn_exact_parameters *parameters);

/* A vector output; MEAN and VAR are those of statistics that are not frozen. */
double refbn_exact_vector(const refbn_exact_group *group, int output, int format);

/* An element's output. What the output's formula does not contain may be anything. */
double refbn_exact_element(refbn_exact_group *group, int output, double x, double g, double u, int format);

/* The same for elements index[0 .. n - 1] of x, g and u (NULL where the formula contains none): the bits that
 * encode the outputs in the format. */
void refbn_exact_elements(refbn_exact_group *group, int output, const double *x, const double *g,
                          const double *u, const uint16_t *index, ptrdiff_t n, int format, uint64_t *code);

/* Whether so many elements were exactly 0 that it pays to find out whether all are: then gather the squares
 * of all elements (in any order and any pieces) between a `begin` and an `end`. The pass may not have g or
 * u. */
int refbn_exact_suggests_zero(const refbn_exact_group *group, int output);
void refbn_exact_squares_begin(refbn_exact_group *group);
void refbn_exact_squares_gather(refbn_exact_group *group, const double *g, const double *u, ptrdiff_t n);
void refbn_exact_squares_end(refbn_exact_group *group);

/* The running mean or variance after a pass FORWARD. The new statistic weighs numerator / denominator if
 * weighs_new, or else the old one does; the other weighs the rest. 0 <= numerator, 0 < denominator.
 * `unbiased` needs a count above 1. */
double refbn_exact_running(const refbn_exact_group *group, int is_var, int unbiased, double numerator,
                           double denominator, int weighs_new, double old, int format);

/* a / (c sqrt(r)) + b, rounded; r and b may be NULL; c, r > 0. With (at the widest) t of binary64, a^2 and
 * (t - b)^2 c^2 r, or (t - b) c if r is NULL, must take no more than REFBN_EXACT_LIMBS. Exactly zero gives
 * +0; what only rounds to zero keeps its sign. */
double refbn_exact_round(const refbn_exact_number *a, const refbn_exact_number *c,
                         const refbn_exact_number *r, const refbn_exact_number *b, int format);

#endif
