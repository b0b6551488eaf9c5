// What all kernels share: dtypes, rows, wide loads, numbers that are not finite, warps and blocks.
//
// A module is the text of one .cu file behind a few lines of #define:
//   FG_DTYPE  what X holds: 0 float16, 1 bfloat16, 2 float32, 3 float64
//   FG_TABLE  1: `rows` holds addresses; 0: one matrix, its rows `stride` bytes apart
//
// No header of the CUDA toolkit is used (a machine with a driver need not have them): float16 is
// converted by the machine's own instruction, bfloat16 is the upper half of a float32.

#pragma once

#ifdef __CUDACC__
#define FG_DYNAMIC_SHARED(type, name)                             \
    extern __shared__ __align__(32) unsigned char fg_shared_[];   \
    type* const name = reinterpret_cast<type*>(fg_shared_)
#endif

typedef unsigned long long u64;

// ------------------------------------------------------------------------- numbers, by their bits

// Tests on bits mean the same under any compiler flags.
__device__ __forceinline__ bool is_finite(float x) {
    return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u;
}
__device__ __forceinline__ bool is_finite(double x) {
    return (static_cast<unsigned>(__double2hiint(x)) & 0x7ff00000u) != 0x7ff00000u;
}
__device__ __forceinline__ bool is_nan(float x) {
    return (__float_as_uint(x) & 0x7fffffffu) > 0x7f800000u;
}
__device__ __forceinline__ bool is_nan(double x) {
    return (static_cast<u64>(__double_as_longlong(x)) & ~(1ull << 63)) > 0x7ff0000000000000ull;
}

template <class Number> __device__ __forceinline__ Number infinity();
template <> __device__ __forceinline__ float infinity<float>() {
    return __uint_as_float(0x7f800000u);
}
template <> __device__ __forceinline__ double infinity<double>() {
    return __longlong_as_double(0x7ff0000000000000ll);
}
template <class Number> __device__ __forceinline__ Number not_a_number();
template <> __device__ __forceinline__ float not_a_number<float>() {
    return __uint_as_float(0x7fc00000u);
}
template <> __device__ __forceinline__ double not_a_number<double>() {
    return __longlong_as_double(0x7ff8000000000000ll);
}

__device__ __forceinline__ float smaller(float x, float y) { return fminf(x, y); }
__device__ __forceinline__ double smaller(double x, double y) { return fmin(x, y); }
__device__ __forceinline__ float larger(float x, float y) { return fmaxf(x, y); }
__device__ __forceinline__ double larger(double x, double y) { return fmax(x, y); }
__device__ __forceinline__ float multiply_add(float x, float y, float z) {
    return __fmaf_rn(x, y, z);
}
__device__ __forceinline__ double multiply_add(double x, double y, double z) {
    return __fma_rn(x, y, z);
}
__device__ __forceinline__ float divide(float x, float y) { return __fdiv_rn(x, y); }
__device__ __forceinline__ double divide(double x, double y) { return __ddiv_rn(x, y); }

// ------------------------------------------------------------------------------------- the dtypes

#ifdef FG_DTYPE

#if FG_DTYPE == 3
typedef double T;  // as stored
typedef double C;  // as computed
#elif FG_DTYPE == 2
typedef float T;
typedef float C;
#else
typedef unsigned short T;
typedef float C;
#endif

// One number, widened.
__device__ __forceinline__ C widen(T x) {
#if FG_DTYPE >= 2
    return x;
#elif FG_DTYPE == 1
    return __uint_as_float(static_cast<unsigned>(x) << 16);
#elif defined(__CUDACC__)
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x));
    return wide;
#else
    return host_half_to_float(x);
#endif
}

// One number, rounded to nearest, ties to even.
__device__ __forceinline__ T narrow(C x) {
#if FG_DTYPE >= 2
    return x;
#elif FG_DTYPE == 1
    const unsigned bits = __float_as_uint(x);
    if (is_nan(x)) return static_cast<T>((bits | 0x400000u) >> 16);  // rounding could make it Inf
    return static_cast<T>((bits + ((bits >> 16) & 1u) + 0x7fffu) >> 16);
#elif defined(__CUDACC__)
    unsigned short half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
    return half;
#else
    return host_float_to_half(x);
#endif
}

// The same number, but +0 for -0. By its bits, since an addition could flush or quiet others.
__device__ __forceinline__ T positive_zero(T x) {
#if FG_DTYPE == 3
    return static_cast<u64>(__double_as_longlong(x)) == 1ull << 63 ? T(0) : x;
#elif FG_DTYPE == 2
    return __float_as_uint(x) == 0x80000000u ? T(0) : x;
#else
    return x == 0x8000u ? T(0) : x;
#endif
}

__device__ __forceinline__ C load(const T* place) { return widen(__ldg(place)); }

// K neighbouring numbers, moved by one instruction for WIDE of them: at most 16 bytes, aligned to
// their size.
template <int K, int WIDE = K> struct Pack {
    T item[K];
    __device__ __forceinline__ C operator[](int i) const { return widen(item[i]); }
};

template <int BYTES> struct Word;
template <> struct Word<2> { typedef unsigned short type; };
template <> struct Word<4> { typedef unsigned int type; };
template <> struct Word<8> { typedef uint2 type; };
template <> struct Word<16> { typedef uint4 type; };

template <int K, int WIDE>
__device__ __forceinline__ void load_pack(Pack<K, WIDE>& pack, const T* place) {
    typedef typename Word<WIDE * sizeof(T)>::type W;
#pragma unroll
    for (int i = 0; i < K; i += WIDE) {
        const W word = __ldg(reinterpret_cast<const W*>(place + i));
        memcpy(pack.item + i, &word, sizeof word);
    }
}

template <int K, int WIDE>
__device__ __forceinline__ void store_pack(T* place, const Pack<K, WIDE>& pack) {
    typedef typename Word<WIDE * sizeof(T)>::type W;
#pragma unroll
    for (int i = 0; i < K; i += WIDE) {
        W word;
        memcpy(&word, pack.item + i, sizeof word);
        *reinterpret_cast<W*>(place + i) = word;
    }
}

// Whether `place` may be read K numbers at a time.
template <int K> __device__ __forceinline__ bool aligned(const void* place) {
    return reinterpret_cast<u64>(place) % (K * sizeof(T)) == 0;
}

#ifdef FG_TABLE
// Where row i begins.
__device__ __forceinline__ const T* row(const void* rows, long long stride, long long i) {
#if FG_TABLE
    return reinterpret_cast<const T*>(__ldg(static_cast<const u64*>(rows) + i));
#else
    return reinterpret_cast<const T*>(static_cast<const char*>(rows) + i * stride);
#endif
}

// K columns from column j on of up to AHEAD rows, which `place` tells the beginnings of; beyond the
// last column, zeros. All loads are under way before one is waited for: so one test for all whether
// they are whole, and where there are fewer rows, the first again, without a test. (Where a load
// depends on a test, the compiler takes apart at once what it brings.)
template <int K, int WIDE, int AHEAD, class Place>
__device__ __forceinline__ void load_rows(Pack<K, WIDE> (&x)[AHEAD], Place place, int count,
                                          long long j, long long columns) {
    if (j + K <= columns) {
#pragma unroll
        for (int a = 0; a < AHEAD; ++a) load_pack(x[a], place(a < count ? a : 0) + j);
    } else {
#pragma unroll
        for (int a = 0; a < AHEAD; ++a) {
            if (a >= count) continue;
            const T* const own = place(a) + j;
#pragma unroll
            for (int k = 0; k < K; ++k) x[a].item[k] = j + k < columns ? __ldg(own + k) : T(0);
        }
    }
}

// Rows that lie apart, in one leaf of a model or in several, are given by a record for each leaf:
//   the number of its first *unit* of work (units are numbered through all leaves), its units, its
//   columns, the number of its first column; then where each row begins, then where each result
//   goes, unless the launch says that itself. What a unit is, each kernel says.
constexpr int RECORD = 4;

// The record of the leaf that this unit is of, among `count` records of `size` numbers. Each step
// waits for the one before: so this is done once for a block or a tile, and a step cuts what is
// left into five parts, not two, by four records that are read together. But not before columns
// that lie in registers: from two cuts on, a hundred halves no longer stay in them.
__device__ __forceinline__ const long long* leaf_of(const void* leaves, long long count,
                                                    long long size, long long unit) {
#ifdef FG_NETWORK
    constexpr int CUTS = 1;
#else
    constexpr int CUTS = 4;
#endif
    const long long* const records = static_cast<const long long*>(leaves);
    int low = 0, high = static_cast<int>(count);
#pragma unroll 1
    while (high - low > 1) {
        const int part = (high - low + CUTS) / (CUTS + 1);
        long long first[CUTS];
#pragma unroll
        for (int a = 0; a < CUTS; ++a) {  // past the last record, that again
            const int cut = low + (a + 1) * part;
            first[a] = __ldg(records + (cut < high ? cut : high - 1) * size);
        }
        int passed = 0;
#pragma unroll
        for (int a = 0; a < CUTS; ++a) passed += low + (a + 1) * part < high && first[a] <= unit;
        low += passed * part;
        if (low + part < high) high = low + part;
    }
    return records + low * size;
}

// What a block works on, where the units are blocks and the result is one row: its number among the
// blocks of its leaf, and that leaf.
struct Work {
    long long block, blocks;
    const void* rows;
    void* out;
    long long columns, offset;
};
__device__ __forceinline__ Work work_of(const void* rows, long long stride, long long n, void* out,
                                        long long columns, long long offset) {
#if FG_TABLE
    const long long* const leaf = leaf_of(rows, stride, RECORD + n + (out == nullptr), blockIdx.x);
    if (out == nullptr) out = reinterpret_cast<void*>(__ldg(leaf + RECORD + n));
    const long long blocks = stride > 1 ? __ldg(leaf + 1) : gridDim.x;
    return {blockIdx.x - __ldg(leaf), blocks, leaf + RECORD, out, __ldg(leaf + 2),
            offset + __ldg(leaf + 3)};
#else
    return {blockIdx.x, gridDim.x, rows, out, columns, offset};
#endif
}
#endif

#endif  // FG_DTYPE

// Hides from the compiler where an address comes from. Otherwise it computes those of all rows
// ahead, and holds two registers for each (sm_100: 168 registers instead of 64 for 51 rows).
template <class P> __device__ __forceinline__ void hide(P*& place) {
#ifdef __CUDACC__
    asm volatile("" : "+l"(place));
#endif
}

// Hides from the compiler what a number was made of, which is made here and no later.
__device__ __forceinline__ void opaque(float& x) {
#ifdef __CUDACC__
    asm volatile("" : "+f"(x));
#endif
}
__device__ __forceinline__ void opaque(double& x) {
#ifdef __CUDACC__
    asm volatile("" : "+d"(x));
#endif
}

// Has four numbers there at once. Else sm_100 and sm_120 load each where it is used.
__device__ __forceinline__ void together(unsigned short& a, unsigned short& b, unsigned short& c,
                                         unsigned short& d) {
#ifdef __CUDACC__
    asm volatile("" : "+h"(a), "+h"(b), "+h"(c), "+h"(d));
#endif
}
__device__ __forceinline__ void together(float& a, float& b, float& c, float& d) {
#ifdef __CUDACC__
    asm volatile("" : "+f"(a), "+f"(b), "+f"(c), "+f"(d));
#endif
}
__device__ __forceinline__ void together(double& a, double& b, double& c, double& d) {
#ifdef __CUDACC__
    asm volatile("" : "+d"(a), "+d"(b), "+d"(c), "+d"(d));
#endif
}

// ------------------------------------------------------------------------------ warps and blocks

#define FG_WARP 0xffffffffu

__device__ __forceinline__ int thread_index() { return static_cast<int>(threadIdx.x); }
__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x & 31u); }
__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x >> 5); }
__device__ __forceinline__ int warps() { return static_cast<int>(blockDim.x >> 5); }

// Sum over the lanes of a warp, the same in all of them and in a fixed order.
template <class Number> __device__ __forceinline__ Number warp_sum(Number x) {
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) x += __shfl_xor_sync(FG_WARP, x, step);
    return x;
}

// Hands what `load` gives for first, first + step, ... to `use`, in this order. AHEAD loads are
// under way before one is waited for: past the end, the first of the turn again.
template <int AHEAD, class Index, class Load, class Use>
__device__ __forceinline__ void each(Index first, Index end, Index step, Load load, Use use) {
#pragma unroll 1
    for (Index k = first; k < end; k += AHEAD * step) {
        decltype(load(k)) x[AHEAD];
#pragma unroll
        for (int a = 0; a < AHEAD; ++a) x[a] = load(k + a * step < end ? k + a * step : k);
#pragma unroll
        for (int a = 0; a < AHEAD; ++a)
            if (k + a * step < end) use(k + a * step, x[a]);
    }
}

// Set a flag that other threads may be setting too; who reads it waits at a barrier first.
__device__ __forceinline__ void mark(int& flag) { *static_cast<volatile int*>(&flag) = 1; }
