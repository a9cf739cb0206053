/* How a pass walks through a call: groups in units, elements in tiles.
 *
 * A unit is the up to REFBN_LANES consecutive groups that one run of a pass works on. A tile is a part of it:
 * rows of lanes. By groups, where these lie side by side in memory, a row holds one element of every group of
 * the unit; or, of a few groups, as many copies of that as lanes allow: one element after the other, of every group.
 * By elements, a row holds REFBN_ROW consecutive elements of one group, and the groups of the unit
 * take turns at each tile: there are as many of them as the cache holds between one sweep and the next. Rows
 * belong to runs, in which memory goes on; what is left at the end of each run is its tail, shorter than a row.
 * Kernels see a tile through one pointer and two distances for each tensor, between rows and between runs, in
 * binary32 or binary64: memory itself where it lies like that, else a buffer. Elements come in any order that
 * suits the memory: correctly rounded results do not depend on it.
 */
#ifndef REFBN_SWEEP_H
#define REFBN_SWEEP_H

#include "lanes.h"

enum {
    REFBN_LANES = 64,            /* groups of a unit at most */
    REFBN_ROW = 4 * REFBN_WIDTH, /* lanes that a kernel's inner loop takes at once */
    REFBN_COLUMNS = 2 * REFBN_WIDTH, /* lanes that sums from a bias on take at once */
    REFBN_ROWS = 32,             /* rows of a tile */
    REFBN_TILE = REFBN_ROWS * REFBN_ROW, /* elements of a tile by elements */
    REFBN_BLOCK = REFBN_ROWS * REFBN_LANES, /* numbers in a tile at most */
    REFBN_SPREAD = 128, /* lanes that the totals of a unit are spread over, by elements */
    REFBN_BAND = 8,     /* units by groups whose sweeps go together, so that memory goes by in long pieces */
    REFBN_STRIP = 8,    /* rows of a tile by groups that are worked on at a time, one unit after the other */
    REFBN_FEW = 4       /* rows of a run that are combined again if something among them is undecided */
};

typedef struct {
    ptrdiff_t group; /* the first one */
    int groups;
    int by_groups;
    int copies; /* elements of each group in a row, by groups */
} refbn_unit;

/* One group of a unit by elements; all groups by groups. The lanes of what belongs to it begin at `lane`. */
typedef struct {
    refbn_unit unit;
    int lane;
} refbn_turn;

static inline int refbn_turns(const refbn_unit *unit) { return unit->by_groups ? 1 : unit->groups; }

static inline refbn_turn refbn_turn_at(const refbn_unit *unit, int index)
{
    if (unit->by_groups)
        return (refbn_turn){*unit, 0};
    return (refbn_turn){{unit->group + index, 1, 0, 1}, index};
}

/* By elements, either rows and tails make up the count, or there is one run of whole rows, the rest of the last
 * one being padding. A run with a tail has a row at least. */
typedef struct {
    ptrdiff_t start, count; /* elements (of each group) */
    int rows, columns;      /* of a run; columns beyond a unit's lanes are padding */
    int runs, tail;         /* elements of a tail; by groups 1, 0 */
} refbn_tile;

typedef struct {
    char *data;
    ptrdiff_t stride, run; /* from row to row and from run to run, in bytes */
} refbn_rows;

static REFBN_INLINE int refbn_run_length(const refbn_tile *tile) { return tile->rows * tile->columns + tile->tail; }

/* With padding. */
static REFBN_INLINE int refbn_numbers_of(const refbn_tile *tile) { return tile->runs * refbn_run_length(tile); }

/* A run's rows are taken a few at a time; its tail goes with the last ones. Such blocks are counted through all
 * runs. */
static REFBN_INLINE int refbn_blocks_of_run(const refbn_tile *tile) { return (tile->rows + REFBN_FEW - 1) / REFBN_FEW; }

static inline refbn_tile refbn_block(const refbn_tile *tile, int index)
{
    const int row = index % refbn_blocks_of_run(tile) * REFBN_FEW, left = tile->rows - row;
    refbn_tile block = *tile;
    block.runs = 1;
    block.rows = left < REFBN_FEW ? left : REFBN_FEW;
    block.tail = left <= REFBN_FEW ? tile->tail : 0;
    return block;
}

static inline refbn_rows refbn_rows_of_block(const refbn_tile *tile, const refbn_rows *rows, int index)
{
    const int run = index / refbn_blocks_of_run(tile), row = index % refbn_blocks_of_run(tile) * REFBN_FEW;
    return (refbn_rows){rows->data + run * rows->run + row * rows->stride, rows->stride, rows->run};
}

static inline ptrdiff_t refbn_magnitude(ptrdiff_t a) { return a < 0 ? -a : a; }

static inline int refbn_is_broadcast(const refbn_call *call, const refbn_tensor *tensor)
{
    for (int axis = 0; axis < call->geometry.ndim; axis++)
        if (tensor->stride[axis] != 0 && call->geometry.extent[axis] > 1)
            return 0;
    return 1;
}

/* How many groups a unit by elements has: whole vectors of them, where the cache holds that many. */
static int refbn_groups_at_once(const refbn_call *call)
{
    enum { CACHED = 1 << 18 }; /* bytes */
    const refbn_tensor *const inputs[] = {&call->x, &call->dy, &call->x_dot};
    ptrdiff_t bytes = 1, most = REFBN_SPREAD / REFBN_WIDTH < REFBN_LANES ? REFBN_SPREAD / REFBN_WIDTH : REFBN_LANES;
    for (int k = 0; k < 3; k++)
        if (inputs[k]->data && !refbn_is_broadcast(call, inputs[k]))
            bytes += call->geometry.count * refbn_size(inputs[k]->format);
    const ptrdiff_t groups = CACHED / bytes < most ? CACHED / bytes : most;
    return groups <= 1 ? 1 : (int)(groups <= REFBN_WIDTH ? groups : groups - groups % REFBN_WIDTH);
}

/* How many elements of each group a row holds, by groups: more than one of a few groups that are dense in memory.
 * Rows that are whole vectors, which need no copy, come first. */
static int refbn_choose_copies(const refbn_geometry *geometry, refbn_tensor *const *used, int tensors)
{
    const int last = geometry->ndim - 1;
    const ptrdiff_t groups = geometry->groups;
    if (groups < 2 || 2 * groups > REFBN_LANES)
        return 1;
    for (int t = 0; t < tensors; t++) {
        const ptrdiff_t size = refbn_size(used[t]->format);
        if (used[t]->group_stride != size || used[t]->stride[last] != groups * size)
            return 1;
    }
    int best = 1;
    for (int copies = 2; copies <= REFBN_ROW && copies * groups <= REFBN_LANES; copies *= 2)
        if (geometry->extent[last] % copies == 0 &&
            (copies * groups % REFBN_COLUMNS == 0 || best * groups % REFBN_COLUMNS != 0))
            best = copies;
    return best;
}

/* Large outputs do not stay in the cache, and the machine need not read what it overwrites; provided that
 * rows start where streams may (lanes.h) and, by groups or in short runs, where lines of the cache do: a line
 * that is streamed in two parts costs more than all it saves. */
static void refbn_plan_stream(const refbn_call *call, refbn_tensor *tensor)
{
    enum { LARGE = 1 << 24, SHORT = 1 << 12 }; /* bytes */
    const refbn_geometry *geometry = &call->geometry;
    const ptrdiff_t run = geometry->extent[geometry->ndim - 1] * refbn_size(tensor->format);
    const uintptr_t aligned = call->by_groups || (geometry->ndim > 1 && run < SHORT) ? 63 : 15;
    uintptr_t starts = (uintptr_t)tensor->data | (uintptr_t)(call->by_groups ? 0 : tensor->group_stride);
    for (int axis = 0; axis < geometry->ndim - !call->by_groups; axis++)
        starts |= (uintptr_t)tensor->stride[axis];
    tensor->stream = REFBN_FUSED && tensor->data && (starts & aligned) == 0 &&
                     geometry->groups * geometry->count * refbn_size(tensor->format) >= LARGE;
}

/* Bring the axes into memory order, merge those that all tensors allow to merge, and choose what a row holds.
 */
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
    call->copies = refbn_choose_copies(geometry, used, tensors);
    call->by_groups |= call->copies > 1;
    call->unit_groups = call->by_groups ? (int)REFBN_LANES : refbn_groups_at_once(call);
    const ptrdiff_t extent = geometry->extent[merged - 1], rows = (extent + REFBN_ROW - 1) / REFBN_ROW;
    call->tile = REFBN_TILE;
    if (!call->by_groups && merged > 1 && extent >= REFBN_ROW && rows <= REFBN_ROWS)
        call->tile = REFBN_ROWS / rows * extent; /* whole runs */
    refbn_plan_stream(call, &call->y);
    refbn_plan_stream(call, &call->dx);
}

/* How many lanes of a row are in use, by groups. */
static inline int refbn_row_lanes(const refbn_unit *unit) { return unit->groups * unit->copies; }

static inline int refbn_columns(const refbn_unit *unit)
{
    const int whole = (refbn_row_lanes(unit) + REFBN_COLUMNS - 1) / REFBN_COLUMNS * REFBN_COLUMNS;
    return unit->by_groups && whole > REFBN_ROW ? whole : REFBN_ROW;
}

/* How many lanes of a unit's results are in use, rounded up to whole vectors. */
static inline int refbn_lanes(const refbn_unit *unit)
{
    return (unit->groups + REFBN_WIDTH - 1) / REFBN_WIDTH * REFBN_WIDTH;
}

/* Each group's value to all its lanes, by groups. */
static inline void refbn_repeat(const refbn_unit *unit, double *lanes)
{
    for (int lane = unit->groups; lane < refbn_row_lanes(unit); lane++)
        lanes[lane] = lanes[lane - unit->groups];
}

static inline ptrdiff_t refbn_tile_size(const refbn_call *call, const refbn_unit *unit)
{
    return unit->by_groups ? (ptrdiff_t)REFBN_ROWS * unit->copies : call->tile;
}

static inline ptrdiff_t refbn_tiles(const refbn_call *call, const refbn_unit *unit)
{
    const ptrdiff_t size = refbn_tile_size(call, unit);
    return (call->geometry.count + size - 1) / size;
}

static inline refbn_tile refbn_tile_at(const refbn_call *call, const refbn_unit *unit, ptrdiff_t index)
{
    const ptrdiff_t size = refbn_tile_size(call, unit), start = index * size, left = call->geometry.count - start;
    const ptrdiff_t count = left < size ? left : size;
    const ptrdiff_t rows = unit->by_groups ? count / unit->copies : (count + REFBN_ROW - 1) / REFBN_ROW;
    return (refbn_tile){start, count, (int)rows, refbn_columns(unit), 1, 0};
}

/* Where an element of a group lies; `left` becomes the number of elements from it to the end of its run, in
 * which they are inner stride apart. */
static inline char *refbn_element(const refbn_call *call, const refbn_tensor *tensor, ptrdiff_t group,
                                  ptrdiff_t element, ptrdiff_t *left)
{
    const refbn_geometry *geometry = &call->geometry;
    char *data = tensor->data + group * tensor->group_stride;
    *left = geometry->extent[geometry->ndim - 1];
    for (int axis = geometry->ndim - 1; axis > 0; axis--) {
        const ptrdiff_t index = element % geometry->extent[axis];
        data += index * tensor->stride[axis];
        if (axis == geometry->ndim - 1)
            *left -= index;
        element /= geometry->extent[axis];
    }
    if (geometry->ndim == 1)
        *left -= element;
    return data + element * tensor->stride[0];
}

/* The run after one that started at `data`; `element` is its first element. */
static inline char *refbn_next_run(const refbn_call *call, const refbn_tensor *tensor, ptrdiff_t group,
                                   ptrdiff_t element, char *data, ptrdiff_t taken, ptrdiff_t *left)
{
    const refbn_geometry *geometry = &call->geometry;
    if (geometry->ndim != 2)
        return refbn_element(call, tensor, group, element, left);
    *left = geometry->extent[1]; /* the common case without divisions */
    return data + (taken - geometry->extent[1]) * tensor->stride[1] + tensor->stride[0];
}

static inline ptrdiff_t refbn_runs(const refbn_call *call)
{
    return call->geometry.count /
           (call->geometry.extent[call->geometry.ndim - 1] + (call->geometry.count == 0));
}

/* By elements, the rows and the tail of each of some runs. */
static inline refbn_tile refbn_of_runs(ptrdiff_t start, ptrdiff_t runs, ptrdiff_t length)
{
    if (length < REFBN_ROW)
        return (refbn_tile){start, length, 1, REFBN_ROW, 1, 0};
    return (refbn_tile){start, runs * length, (int)(length / REFBN_ROW), REFBN_ROW, (int)runs,
                        (int)(length % REFBN_ROW)};
}

/* A tile is worked on in pieces, in which one distance leads from run to run. `rest`, a tile at first, is what is
 * left after the piece. */
static inline refbn_tile refbn_next_piece(const refbn_call *call, const refbn_unit *unit, refbn_tile *rest)
{
    const refbn_geometry *geometry = &call->geometry;
    const int inner = geometry->ndim - 1;
    const ptrdiff_t extent = geometry->extent[inner];
    refbn_tile piece = *rest;
    if (unit->by_groups) {
        const ptrdiff_t left = inner > 0 ? extent - rest->start % extent : rest->count;
        piece.count = left < rest->count ? left : rest->count;
        piece.rows = (int)(piece.count / unit->copies);
    } else if (inner == 0)
        piece = refbn_of_runs(rest->start, 1, rest->count);
    else if (extent >= REFBN_ROW) {
        const ptrdiff_t done = rest->start % extent, left = extent - done;
        ptrdiff_t runs = rest->count / extent;
        if (done > 0 || runs == 0)
            piece = refbn_of_runs(rest->start, 1, left < rest->count ? left : rest->count);
        else {
            const ptrdiff_t follow = inner > 1 ? geometry->extent[inner - 1] - rest->start / extent %
                                                                                   geometry->extent[inner - 1]
                                               : runs;
            piece = refbn_of_runs(rest->start, follow < runs ? follow : runs, extent);
        }
    } /* else a copy of the tile, padded */
    rest->start += piece.count;
    rest->count -= piece.count;
    rest->rows = (int)(unit->by_groups ? rest->count / unit->copies : (rest->count + REFBN_ROW - 1) / REFBN_ROW);
    return piece;
}

/* The next piece; by groups, as much of it as units of a band take in turns where memory is far away. */
static inline refbn_tile refbn_next_strip(const refbn_call *call, const refbn_unit *unit, refbn_tile *rest)
{
    enum { NEAR = 1 << 16 }; /* elements */
    const refbn_tile before = *rest;
    refbn_tile piece = refbn_next_piece(call, unit, rest);
    if (!unit->by_groups || piece.rows <= REFBN_STRIP || call->geometry.groups * call->geometry.count < NEAR)
        return piece;
    piece.rows = REFBN_STRIP;
    piece.count = REFBN_STRIP * unit->copies;
    const ptrdiff_t left = before.count - piece.count;
    *rest = (refbn_tile){before.start + piece.count, left, (int)(left / unit->copies), before.columns, 1, 0};
    return piece;
}

/* Whether a tile of a tensor can be used where it lies. */
static inline int refbn_in_place(const refbn_call *call, const refbn_unit *unit, const refbn_tile *tile,
                                 const refbn_tensor *tensor, int format, refbn_rows *rows)
{
    const int last = call->geometry.ndim - 1;
    const ptrdiff_t size = refbn_size(format), inner = tensor->stride[last];
    ptrdiff_t left;
    if (tensor->format != format ||
        (unit->by_groups ? tensor->group_stride != size || refbn_row_lanes(unit) != tile->columns
                         : inner != size || refbn_numbers_of(tile) != tile->count))
        return 0;
    rows->data = refbn_element(call, tensor, unit->group, tile->start, &left);
    rows->stride = unit->by_groups ? inner * unit->copies : REFBN_ROW * size;
    rows->run = last > 0 ? tensor->stride[last - 1] : 0;
    return left >= tile->count || tile->runs > 1;
}

/* Side by side in a buffer. */
static inline refbn_rows refbn_in_buffer(const refbn_tile *tile, void *buffer, int size)
{
    return (refbn_rows){buffer, (ptrdiff_t)tile->columns * size, (ptrdiff_t)refbn_run_length(tile) * size};
}

/* The tile for reading, in `format` (binary32 or binary64), scaled by a power of two unless that is 1.
 * Padding repeats the lane's pivot. */
static void refbn_read(const refbn_call *call, const refbn_unit *unit, const refbn_tile *tile,
                       const refbn_tensor *tensor, int format, const double *scale, const double *pivot, void *buffer,
                       refbn_rows *rows)
{
    if (!scale && refbn_in_place(call, unit, tile, tensor, format, rows))
        return;
    const int size = refbn_size(format);
    const ptrdiff_t inner = tensor->stride[call->geometry.ndim - 1];
    *rows = refbn_in_buffer(tile, buffer, size);
    ptrdiff_t left;
    char *data = refbn_element(call, tensor, unit->group, tile->start, &left);
    for (ptrdiff_t done = 0; done < tile->count;) {
        left = left < tile->count - done ? left : tile->count - done;
        char *to = rows->data + (unit->by_groups ? done / unit->copies * rows->stride : done * size);
        const char *from = data;
        for (ptrdiff_t row = 0; row < (unit->by_groups ? left / unit->copies : 1); row++) {
            const ptrdiff_t stride = unit->by_groups ? tensor->group_stride : inner;
            const ptrdiff_t n = unit->by_groups ? refbn_row_lanes(unit) : left;
            if (format == REFBN_F32)
                refbn_read_float(tensor->format, (float *)(void *)to, from, stride, n);
            else
                refbn_read_double(tensor->format, (double *)(void *)to, from, stride, n);
            to += rows->stride;
            from += inner * unit->copies;
        }
        done += left;
        if (done < tile->count)
            data = refbn_next_run(call, tensor, unit->group, tile->start + done, data, left, &left);
    }
    const int all = refbn_numbers_of(tile);
    if (unit->by_groups) {
        for (int row = 0; row < tile->rows; row++)
            for (int lane = refbn_row_lanes(unit); lane < tile->columns; lane++)
                if (format == REFBN_F32)
                    ((float *)buffer)[row * tile->columns + lane] = (float)pivot[lane];
                else
                    ((double *)buffer)[row * tile->columns + lane] = pivot[lane];
    } else
        for (int k = (int)tile->count; k < all; k++)
            if (format == REFBN_F32)
                ((float *)buffer)[k] = (float)pivot[0];
            else
                ((double *)buffer)[k] = pivot[0];
    if (scale) /* binary64; padding, being a pivot, is scaled already */
        for (int k = 0; k < all; k++) {
            const int lane = unit->by_groups ? k % tile->columns : 0;
            if (unit->by_groups ? lane < unit->groups : k < tile->count)
                ((double *)buffer)[k] *= scale[lane];
        }
}

/* Ask for the memory of a tile ahead of its use, where the hardware would not: where memory goes by in short
 * runs far apart. */
static void refbn_prefetch(const refbn_call *call, const refbn_unit *unit, ptrdiff_t index,
                           const refbn_tensor *tensor, int write)
{
    enum { LINE = 64, LONG = 2048 };
    const refbn_geometry *geometry = &call->geometry;
    const ptrdiff_t inner = tensor->stride[geometry->ndim - 1], size = refbn_size(tensor->format);
    const ptrdiff_t extent = geometry->extent[geometry->ndim - 1];
    ptrdiff_t row = 0;
    if (unit->by_groups)
        row = tensor->group_stride == size ? unit->groups * size : 0;
    else if (inner == size && geometry->ndim > 1)
        row = extent * size;
    if (row == 0 || row > LONG || (unit->by_groups && row == inner) || index >= refbn_tiles(call, unit))
        return;
    const refbn_tile tile = refbn_tile_at(call, unit, index);
    ptrdiff_t left;
    char *data = refbn_element(call, tensor, unit->group, tile.start, &left);
    for (ptrdiff_t done = 0; done < tile.count;) {
        left = left < tile.count - done ? left : tile.count - done;
        const char *at = data;
        for (ptrdiff_t k = 0; k < (unit->by_groups ? left : 1); k++, at += inner)
            for (ptrdiff_t byte = 0; byte < (unit->by_groups ? row : left * size) + LINE - 1; byte += LINE)
                if (write)
                    __builtin_prefetch(at + byte, 1, 2);
                else
                    __builtin_prefetch(at + byte, 0, 2);
        done += left;
        if (done < tile.count)
            data = refbn_next_run(call, tensor, unit->group, tile.start + done, data, left, &left);
    }
}

/* Write a tile of encoded numbers that lies in a buffer. */
static void refbn_write_tile(const refbn_call *call, const refbn_unit *unit, const refbn_tile *tile,
                             const refbn_tensor *tensor, const void *buffer)
{
    const int size = refbn_size(tensor->format);
    const ptrdiff_t inner = tensor->stride[call->geometry.ndim - 1];
    ptrdiff_t left;
    char *data = refbn_element(call, tensor, unit->group, tile->start, &left);
    for (ptrdiff_t done = 0; done < tile->count;) {
        left = left < tile->count - done ? left : tile->count - done;
        const char *from = (const char *)buffer + done / unit->copies * (unit->by_groups ? tile->columns : 1) * size;
        char *to = data;
        if (!unit->by_groups)
            refbn_write(size, to, from, inner, left);
        else
            for (ptrdiff_t row = 0; row < left / unit->copies; row++) {
                refbn_write(size, to, from, tensor->group_stride, refbn_row_lanes(unit));
                from += tile->columns * size;
                to += inner * unit->copies;
            }
        done += left;
        if (done < tile->count)
            data = refbn_next_run(call, tensor, unit->group, tile->start + done, data, left, &left);
    }
}

static inline void refbn_vector_set(const refbn_vector *vector, ptrdiff_t group, int count,
                                    const double *values)
{
    char *to = vector->data + group * vector->stride;
    switch (vector->format) {
    case REFBN_F32:
        for (int k = 0; k < count; k++)
            *(refbn_float_in_memory *)(to + k * vector->stride) = (float)values[k];
        break;
    case REFBN_F64:
        for (int k = 0; k < count; k++)
            *(refbn_double_in_memory *)(to + k * vector->stride) = values[k];
        break;
    default:
        for (int k = 0; k < count; k++)
            refbn_put(vector->format, to + k * vector->stride, values[k]);
    }
}

#endif
