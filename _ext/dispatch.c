/* Which builds of the kernels this machine can run. meson.build compiles kernels.c once for each and defines
 * REFBN_HAS_AVX2 and REFBN_HAS_AVX512 where the compiler knows them. */
#include "refbn.h"

extern const refbn_kernels refbn_kernels_baseline;
#ifdef REFBN_HAS_AVX2
extern const refbn_kernels refbn_kernels_avx2;
#endif
#ifdef REFBN_HAS_AVX512
extern const refbn_kernels refbn_kernels_avx512;
#endif

const refbn_kernels *refbn_kernels_at(int index)
{
#ifdef REFBN_HAS_AVX512
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("fma") && index-- == 0)
        return &refbn_kernels_avx512;
#endif
#ifdef REFBN_HAS_AVX2
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && index-- == 0)
        return &refbn_kernels_avx2;
#endif
    return index == 0 ? &refbn_kernels_baseline : NULL;
}
