/* The C core of refbn: what the wrapper calls.
 *
 * Freestanding C11: no Python, no NumPy, no allocation, no mutable state outside the arguments. One
 * `refbn_call` describes a call; each pass lists the members that it reads and writes. The meaning of the
 * passes, and the rules R1-R7 at the edges, are those of refbn/backends/_contract.py.
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
    int stream; /* set by the core: written past the caches */
} refbn_tensor;

typedef struct {
    char *data;
    int format;
    ptrdiff_t stride;
} refbn_vector;

/* One row of the state per group: what the derivatives want to know of the forward. */
enum {
    REFBN_STATE_RUNG,  /* the rung (kernels.c) that the sums are good for; beyond double-double: the one to begin
                        * with; 0 with frozen statistics */
    REFBN_STATE_COUNT,
    REFBN_STATE_EPS,
    REFBN_STATE_PIVOT, /* what x is centered by; the mean, if that was given */
    REFBN_STATE_SUM,   /* of t = x - pivot, and of t^2: hi, lo and a bound of the error of each */
    REFBN_STATE_VAR = REFBN_STATE_SUM, /* the variance, if that was given */
    REFBN_STATE_LARGEST = REFBN_STATE_SUM + 6, /* a bound of all |t| */
    REFBN_STATE_SIZE
};

/* The passes, with what they read and write. Those with frozen statistics begin with INFERENCE.
 *
 *   pass                        reads                                       writes
 *   FORWARD                     eps x gamma beta                            state y mean var invstd
 *   BACKWARD                    state x gamma dy                            dx dgamma dbeta
 *   JVP                         state x gamma x_dot gamma_dot beta_dot      y
 *   DOUBLE_BACKWARD             the same, and dy                            y dx dgamma
 *   HVP                         state x gamma dy x_dot gamma_dot            dx dgamma dbeta
 *   RUNNING_UPDATE              state x momentum weights mean var           dmean dvar (the new running values)
 *   INFERENCE                   eps x mean var gamma beta                   state y invstd
 *   INFERENCE_BACKWARD          state x gamma dy                            dx dgamma dbeta dmean dvar
 *   INFERENCE_JVP               state x gamma and all *_dot                 y
 *   INFERENCE_DOUBLE_BACKWARD   the same, and dy                            y dx dgamma dmean dvar
 *   INFERENCE_HVP               the same, without beta_dot                  dx dgamma dbeta dmean dvar
 */
enum {
    REFBN_FORWARD,
    REFBN_BACKWARD,
    REFBN_JVP,
    REFBN_DOUBLE_BACKWARD,
    REFBN_HVP,
    REFBN_RUNNING_UPDATE,
    REFBN_INFERENCE,
    REFBN_INFERENCE_BACKWARD,
    REFBN_INFERENCE_JVP,
    REFBN_INFERENCE_DOUBLE_BACKWARD,
    REFBN_INFERENCE_HVP
};

/* A direction (x_dot, gamma_dot, ...) is also what double backward calls ddx, ddgamma, ...: there, y is ddy. */
typedef struct {
    int pass;
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
    double momentum[2];                         /* running_update: exactly, as a quotient of two numbers */
    double weight_new[3], weight_old[3];        /* running_update: hi, lo and a bound of the error */
    int weighs_new, unbiased;                   /* whose weight momentum is; var is scaled by m / (m - 1) */
    int by_groups, unit_groups, copies;         /* set by the core, as is `tile`: sweep.h */
    ptrdiff_t tile;
    void *scratch;                              /* as much as scratch_size says */
    int64_t *decided;                           /* adds up elements, then vector results, by rung; or NULL */
} refbn_call;

typedef struct refbn_team refbn_team; /* threads.h */

/* The core, compiled for one instruction set. `prepare` a call once (it merges axes), give it scratch for as many
 * members as are to run it, and let every member run it. */
typedef struct {
    const char *name;
    void (*prepare)(refbn_call *call);
    size_t (*scratch_size)(const refbn_call *call, int members);
    void (*run)(refbn_call *call, refbn_team *team);
} refbn_kernels;

/* The builds that this machine can run, the fastest first; NULL from `index` on where there are no more. */
const refbn_kernels *refbn_kernels_at(int index);

#endif
