// What both kernels for columns share: `columns.cu`, in registers, and `tiles.cu`, sorted in a tile.
//
// They do the arithmetic of the kernels for the CPU in the same order, and give the same bits. The
// order of -0 and +0 is another in each, so a result that is zero is +0.
//
// A value that is not finite ranks as the extreme on its side, NaN as +Inf; more than `faults` of
// them in a column make its result NaN. A weight of 0 in W means that the row is not read into the
// sum; a row of NaN in W is a faulty row. picks[0] < 0: every result is NaN.
//
//   FG_MIX       0: the rows; 1: `mixing` is W, m rows of n doubles, `pitch` doubles apart;
//                2: `mixing` is m row numbers (long long)
//   FG_CONDENSE  1: row 0's value instead, unless a hash of the column's number says otherwise
//   FG_RANKS     1: `ranks` holds a weight for each of the m ranks; 0: equal ones in [low, high)
//
// fastgar/cuda/variants.py chooses between them.

#pragma once

#include "common.cuh"

// Put the smaller first. Not for NaN.
__device__ __forceinline__ void exchange(float& x, float& y) {
    const float low = fminf(x, y);
    y = fmaxf(x, y);
    x = low;
}
__device__ __forceinline__ void exchange(double& x, double& y) {  // one comparison: they are slow
    const bool below = x < y;
    const double low = below ? x : y;
    y = below ? y : x;
    x = low;
}

// The greatest power of two with which `count` finite numbers cannot overflow when added up.
__device__ __forceinline__ C sum_scale(long long count) {
    C scale = 1;
    while (scale * static_cast<C>(count) > 1) scale *= static_cast<C>(0.5);
    return scale;
}

// Whether `high` is strictly closer to the centre than `low`; low <= high.
__device__ __forceinline__ bool nearer(C high, C low, C centre) {
    return high - centre < centre - low;
}

__device__ __forceinline__ const T* source(const void* rows, long long stride, const void* mixing,
                                           long long i) {
#if FG_MIX == 2
    i = __ldg(static_cast<const long long*>(mixing) + i);
#endif
    return row(rows, stride, i);
}

__device__ __forceinline__ bool nothing_picked(const void* mixing) {
#if FG_MIX == 2
    return __ldg(static_cast<const long long*>(mixing)) < 0;
#else
    return false;
#endif
}

// A random number in [0, 1) that depends on nothing but the key and the column's number.
__device__ __forceinline__ double draw(u64 key, u64 column) {
    u64 z = key + column * 0x94D049BB133111EBull;
#pragma unroll
    for (int round = 0; round < 2; ++round) {
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
        z = z ^ (z >> 31);
    }
    return static_cast<double>(z >> 11) * (1.0 / 9007199254740992.0);
}

// The result of one column, rounded; for condense, perhaps the first row's number.
__device__ __forceinline__ T result(C value, const T* first, long long column, u64 key,
                                    double probability, long long offset) {
#if FG_CONDENSE
    if (!(draw(key, static_cast<u64>(offset + column)) < probability))
        return positive_zero(first[column]);
#endif
    return positive_zero(narrow(value));
}
