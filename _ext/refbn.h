/* The C core of refbn: what the wrapper calls.
 *
 * Freestanding C11: no Python, no NumPy, no allocation, no mutable state outside the arguments. One
 * `refbn_call` describes a call; each pass lists the members that it reads and writes. The meaning of the
 * passes, and the rules R1-R6 at the edges, are those of refbn/backends/_contract.py.
 */
#ifndef REFBN_H
#define REFBN_H

#include <stddef.h>
#include <stdint.h>

#define REFBN_MAX_NDIM 64

/* The binary formats, in the order of refbn/_formats.py. */
enum { REFBN_F16, REFBN_BF16, REFBN_F32, REFBN_F64 };

/* A canonical tensor has the shape (groups, extent[0], ..., extent[ndim - 1]); count is the product of
 * extents. */
typedef struct {
    ptrdiff_t groups;
    ptrdiff_t count;
    int ndim;
    ptrdiff_t extent[REFBN_MAX_NDIM];
} refbn_geometry;

/* Strides are in bytes, and may be negative or zero. data == NULL: the pass does not use this member. */
typedef struct {
    char *data;
    int format;
    ptrdiff_t group_stride;
    ptrdiff_t stride[REFBN_MAX_NDIM];
} refbn_tensor;

typedef struct {
    char *data;
    int format;
    ptrdiff_t stride;
} refbn_vector;

/* One row of the state per group. A number is kept as (hi + lo) * 2^exponent. */
enum {
    REFBN_STATE_ARITHMETIC, /* which arithmetic computed the row: 0 binary64, 1 double-double, 2 wide */
    REFBN_STATE_COUNT,
    REFBN_STATE_EPS,
    REFBN_STATE_MEAN,                           /* two numbers, each of hi, lo, exponent: the mean and its rest */
    REFBN_STATE_VAR = REFBN_STATE_MEAN + 6,     /* one number */
    REFBN_STATE_INVSTD = REFBN_STATE_VAR + 3,   /* NaN where var + eps == 0 */
    REFBN_STATE_SIZE = REFBN_STATE_INVSTD + 3
};

/* A direction (x_dot, gamma_dot, ...) is also what double backward calls ddx, ddgamma, ...: there, y is ddy.
 * */
typedef struct {
    refbn_geometry geometry;
    double *state;                              /* groups rows of REFBN_STATE_SIZE */
    double eps;
    refbn_tensor x, dy, x_dot;                  /* in */
    refbn_tensor y, dx;                         /* out; y is y, y_dot or ddy */
    refbn_vector gamma, beta;                   /* in */
    refbn_vector mean, var;                     /* out of forward, into inference and running_update */
    refbn_vector invstd;                        /* out */
    refbn_vector gamma_dot, beta_dot, mean_dot, var_dot;   /* in */
    refbn_vector dgamma, dbeta, dmean, dvar;    /* out */
    double weight_new[2], weight_old[2];        /* running_update: weights as hi + lo */
    int unbiased;                               /* running_update: scale the variance by m / (m - 1) */
    int by_groups;                              /* set by the core: lanes are groups, not elements */
} refbn_call;

/* The passes, compiled for one instruction set. Every pass may change its call's tensors and geometry (it
 * merges axes), never the data of an input.
 *
 *   pass                        reads                                       writes
 *   forward                     eps x gamma beta                            state y mean var invstd
 *   backward                    state x gamma dy                            dx dgamma dbeta
 *   jvp                         state x gamma x_dot gamma_dot beta_dot      y
 *   double_backward             the same, and dy                            y dx dgamma
 *   hvp                         state x gamma dy x_dot gamma_dot            dx dgamma dbeta
 *   running_update              state weights unbiased mean var             dmean dvar (the new running
 *   values) inference                   eps x mean var gamma beta                   state y invstd
 *   inference_backward          state x gamma dy                            dx dgamma dbeta dmean dvar
 *   inference_jvp               state x gamma and all *_dot                 y inference_double_backward   the
 *   same, and dy                            y dx dgamma dmean dvar inference_hvp               the same,
 *   without beta_dot                  dx dgamma dbeta dmean dvar
 */
typedef void refbn_pass(refbn_call *call);

typedef struct {
    const char *name;
    refbn_pass *forward, *backward, *jvp, *double_backward, *hvp, *running_update;
    refbn_pass *inference, *inference_backward, *inference_jvp, *inference_double_backward, *inference_hvp;
} refbn_kernels;

/* The builds that this machine can run, the fastest first; NULL from `index` on where there are no more. */
const refbn_kernels *refbn_kernels_at(int index);

#endif
