/* How a pass walks through a call: groups in slabs, elements in tiles.
 *
 * A slab is the group, or the REFBN_LANES consecutive groups, that one run of a pass works on; a tile is what
 * is loaded at a time (memory.h). `by_groups` says which of the two a row of a tile holds. Elements come in
 * any order that suits the memory: nothing here depends on it but the order of a sum.
 */
#ifndef REFBN_SWEEP_H
#define REFBN_SWEEP_H

#include "memory.h"

typedef struct {
    ptrdiff_t group; /* the first one */
    int groups;      /* 1 unless by_groups */
    int width;       /* lanes in use, rounded up to a multiple of 16 */
} refbn_slab;

typedef struct {
    ptrdiff_t start; /* the first element */
    ptrdiff_t count; /* how many of them (of each group) */
    int steps;       /* rows in use */
} refbn_tile;

static inline ptrdiff_t refbn_magnitude(ptrdiff_t a) { return a < 0 ? -a : a; }

/* Bring the axes into memory order, merge those that all tensors allow to merge, and choose what a row holds.
 * */
static void refbn_plan(refbn_call *call)
{
    refbn_geometry *geometry = &call->geometry;
    refbn_tensor *const all[] = {&call->x, &call->dy, &call->x_dot, &call->y, &call->dx};
    refbn_tensor *used[5];
    int tensors = 0, axes = 0;
    for (int t = 0; t < 5; t++)
        if (all[t]->data)
            used[tensors++] = all[t];
    ptrdiff_t distance[REFBN_MAX_NDIM];
    for (int axis = 0; axis < geometry->ndim; axis++) {
        const ptrdiff_t extent = geometry->extent[axis];
        if (extent == 1)
            continue;
        ptrdiff_t stride[5], total = 0;
        for (int t = 0; t < tensors; t++)
            total += refbn_magnitude(stride[t] = used[t]->stride[axis]);
        int at = axes++;
        for (; at > 0 && distance[at - 1] < total; at--) {
            distance[at] = distance[at - 1];
            geometry->extent[at] = geometry->extent[at - 1];
            for (int t = 0; t < tensors; t++)
                used[t]->stride[at] = used[t]->stride[at - 1];
        }
        distance[at] = total;
        geometry->extent[at] = extent;
        for (int t = 0; t < tensors; t++)
            used[t]->stride[at] = stride[t];
    }
    int merged = 0;
    for (int axis = 0; axis < axes; axis++) {
        int joins = axis > 0;
        for (int t = 0; joins && t < tensors; t++)
            joins = used[t]->stride[merged - 1] == geometry->extent[axis] * used[t]->stride[axis];
        merged += !joins;
        geometry->extent[merged - 1] = geometry->extent[axis] * (joins ? geometry->extent[merged - 1] : 1);
        for (int t = 0; t < tensors; t++)
            used[t]->stride[merged - 1] = used[t]->stride[axis];
    }
    if (merged == 0) {
        geometry->extent[merged++] = 1;
        for (int t = 0; t < tensors; t++)
            used[t]->stride[0] = 0;
    }
    geometry->ndim = merged;

    ptrdiff_t between_groups = 0, between_elements = 0;
    for (int t = 0; t < tensors; t++) {
        between_groups += refbn_magnitude(used[t]->group_stride);
        between_elements += refbn_magnitude(used[t]->stride[merged - 1]);
    }
    call->by_groups = geometry->groups >= 8 && (between_groups < between_elements || geometry->count < 64);
}

static inline int refbn_next_slab(const refbn_call *call, refbn_slab *slab) /* start with zeros */
{
    slab->group += slab->groups;
    const ptrdiff_t left = call->geometry.groups - slab->group, most = call->by_groups ? REFBN_LANES : 1;
    slab->groups = (int)(left < most ? left : most);
    const ptrdiff_t lanes = call->by_groups ? slab->groups : call->geometry.count;
    slab->width = lanes > REFBN_LANES ? REFBN_LANES : lanes < 1 ? 16 : (int)(lanes + 15) & -16;
    return left > 0;
}

static inline ptrdiff_t refbn_tiles(const refbn_call *call)
{
    const ptrdiff_t each = call->by_groups ? REFBN_STEPS : REFBN_TILE;
    return (call->geometry.count + each - 1) / each;
}

static inline refbn_tile refbn_tile_at(const refbn_call *call, ptrdiff_t index)
{
    const ptrdiff_t each = call->by_groups ? REFBN_STEPS : REFBN_TILE, start = index * each;
    const ptrdiff_t left = call->geometry.count - start, count = left < each ? left : each;
    const ptrdiff_t steps = call->by_groups ? count : (count + REFBN_LANES - 1) / REFBN_LANES;
    return (refbn_tile){start, count, (int)steps};
}

#define REFBN_EACH_TILE(call)                                                                                \
    for (ptrdiff_t tile_index = 0, tile_count = refbn_tiles(call); tile_index < tile_count; tile_index++)

/* Between a tensor and a block; a partial last row is filled with zeros. */
static inline void refbn_move(const refbn_call *call, const refbn_slab *slab, refbn_tile tile,
                              const refbn_tensor *tensor, double *block, int store)
{
    const refbn_geometry *geometry = &call->geometry;
    const int inner = geometry->ndim - 1;
    ptrdiff_t index[REFBN_MAX_NDIM], rest = tile.start;
    char *data = tensor->data + slab->group * tensor->group_stride;
    for (int axis = inner; axis >= 0; axis--) {
        index[axis] = rest % geometry->extent[axis];
        rest /= geometry->extent[axis];
        data += index[axis] * tensor->stride[axis];
    }
    for (ptrdiff_t done = 0; done < tile.count;) {
        const ptrdiff_t left = tile.count - done, to_end = geometry->extent[inner] - index[inner];
        const ptrdiff_t run = left < to_end ? left : to_end, stride = tensor->stride[inner];
        double *at = block + (call->by_groups ? done * REFBN_LANES : done);
        const ptrdiff_t row_stride = call->by_groups ? stride : 0, rows = call->by_groups ? run : 1;
        const ptrdiff_t lane_stride = call->by_groups ? tensor->group_stride : stride;
        const ptrdiff_t width = call->by_groups ? slab->groups : run;
        if (store)
            refbn_store_block(tensor->format, at, data, row_stride, lane_stride, rows, width);
        else
            refbn_load_block(tensor->format, at, data, row_stride, lane_stride, rows, width);
        done += run;
        index[inner] += run;
        data += run * stride;
        for (int axis = inner; axis > 0 && index[axis] == geometry->extent[axis]; axis--) {
            data += tensor->stride[axis - 1] - geometry->extent[axis] * tensor->stride[axis];
            index[axis] = 0;
            index[axis - 1]++;
        }
    }
    if (!store && !call->by_groups)
        for (ptrdiff_t k = tile.count; k < tile.steps * REFBN_LANES; k++)
            block[k] = 0.0;
}

static void refbn_load(const refbn_call *call, const refbn_slab *slab, refbn_tile tile,
                       const refbn_tensor *tensor, double *block)
{
    refbn_move(call, slab, tile, tensor, block, 0);
}

static void refbn_store(const refbn_call *call, const refbn_slab *slab, refbn_tile tile,
                        const refbn_tensor *tensor, double *block)
{
    refbn_move(call, slab, tile, tensor, block, 1);
}

static inline double refbn_get(const refbn_vector *vector, ptrdiff_t group)
{
    double value;
    refbn_load_block(vector->format, &value, vector->data + group * vector->stride, 0, 0, 1, 1);
    return value;
}

static inline void refbn_set(const refbn_vector *vector, ptrdiff_t group, double value)
{
    refbn_store_block(vector->format, &value, vector->data + group * vector->stride, 0, 0, 1, 1);
}

/* ---- exponents
 * ------------------------------------------------------------------------------------------------
 *
 * Double-double needs room below a number for its lower half and above it for products of up to eight
 * factors. A tensor is fit for it if, in each group, no magnitude exceeds 2^100, none but 0 is below 2^-400,
 * and the largest is 0 or at least 2^-100 (smaller ones than that are then negligible in every mean); a
 * vector if each is 0 or within 2^-100 ... 2^100; eps within 2^-300 ... 2^200; frozen var + eps within 2^-149
 * ... 2^200. The largest product that the passes form from such numbers is below 2^900, the smallest that
 * matters is above 2^-900. Data of the three narrow formats always fit binary64 arithmetic: their magnitudes
 * lie within 2^-149 ... 2^128.
 */
enum { REFBN_UNFIT = 1, REFBN_SMALL = 2, REFBN_LARGE = 4 };

typedef struct {
    int64_t seen[REFBN_LANES];
} refbn_exponents;

static inline void refbn_scan(refbn_exponents *exponents, const refbn_slab *slab,
                              const double *restrict block, int steps)
{
    const int64_t lowest = (int64_t)(1023 - 400) << 52, low = (int64_t)(1023 - 100) << 52;
    const int64_t high = (int64_t)(1023 + 100) << 52, infinity = (int64_t)0x7ff << 52;
    for (int step = 0; step < steps; step++, block += REFBN_LANES)
        REFBN_EACH_LANE(slab->width) {
            const int64_t magnitude = ((refbn_bits){block[lane]}).i & INT64_MAX;
            const int64_t nonzero = magnitude > 0, finite = magnitude < infinity;
            exponents->seen[lane] |= ((magnitude < lowest ? REFBN_UNFIT : 0) & -nonzero) |
                                     ((magnitude > high ? REFBN_UNFIT : 0) & -finite) |
                                     ((magnitude < low ? REFBN_SMALL : REFBN_LARGE) & -nonzero);
        }
}

static inline int refbn_unfit(const refbn_call *call, const refbn_exponents *exponents)
{
    int64_t seen = 0;
    int unfit = 0;
    REFBN_EACH_LANE(REFBN_LANES) {
        seen = exponents->seen[lane] | (call->by_groups ? 0 : seen);
        unfit |= (seen & REFBN_UNFIT) != 0;
        if (call->by_groups || lane == REFBN_LANES - 1)
            unfit |= (seen & REFBN_SMALL) && !(seen & REFBN_LARGE);
    }
    return unfit;
}

static inline int refbn_within(double a, double low, double high) /* 0 and NaN are */
{
    const double magnitude = a < 0.0 ? -a : a;
    return !(magnitude > high) && !(magnitude < low && magnitude > 0.0);
}

/* ---- structure
 * ---------------------------------------------------------------------------------------------- */

/* Which lanes (or, by elements, whether the group) have shown two different values. By (P2) the others are
 * projected to exactly 0, which rounded sums could not show. */
typedef struct {
    double first[REFBN_LANES];
    int varies[REFBN_LANES], settled;
} refbn_constancy;

static inline void refbn_compare(const refbn_call *call, const refbn_slab *slab, refbn_tile tile,
                                 refbn_constancy *constancy, const double *block)
{
    if (constancy->settled)
        return;
    if (tile.start == 0)
        REFBN_EACH_LANE(slab->width) constancy->first[lane] = block[call->by_groups ? lane : 0];
    if (call->by_groups) {
        int still_constant = 0;
        for (int lane = 0; lane < slab->groups; lane++) {
            for (int step = 0; !constancy->varies[lane] && step < tile.steps; step++)
                constancy->varies[lane] = block[step * REFBN_LANES + lane] != constancy->first[lane];
            still_constant |= !constancy->varies[lane];
        }
        constancy->settled = !still_constant;
    } else {
        int64_t varies = 0;
        for (ptrdiff_t k = 0; k < tile.count; k++)
            varies |= block[k] != constancy->first[0];
        if (varies)
            REFBN_EACH_LANE(slab->width) constancy->varies[lane] = 1;
        constancy->settled = varies != 0;
    }
}

#endif
