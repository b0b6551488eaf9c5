// Gives CUDA C++ its meaning on the host, for tests: the threads of a few blocks at a time are fibers
// that run until they wait for each other (machine.cpp). No header of the system is included: a
// kernel compiles in a quarter of a second.
//
// Reported as errors, with block and thread: a barrier or a warp operation that not all threads
// reach, or reach at another line; reading a lane that does not take part; an access outside the
// arrays (they end at guard pages); misaligned wide accesses, indices past the end of local and
// static shared arrays, bad shifts (the compiler's checks, which trap).
// Blocks and threads take turns in an order that a seed shuffles, after each barrier anew, and
// results must not depend on it. Shared memory is filled with NaN before each block.

#pragma once

#include "machine.h"

// --------------------------------------------------------------------------------- words of CUDA

#define FG_HOST 1
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __grid_constant__
#ifdef FG_SANITIZE
#define __shared__ static  // the address sanitizer leaves named sections alone
#else
#define __shared__ static __attribute__((section("fg_shared")))
#endif

typedef dim3 uint3;
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
struct alignas(4) ushort2 { unsigned short x, y; };
struct alignas(8) ushort4 { unsigned short x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

static const int warpSize = 32;

// ------------------------------------------------------------------ waiting for the other threads

namespace fg {

inline u64 barrier(int line, bool in = false) {
    return wait(AT_BARRIER, line, SYNC, 0, 0, in);
}
inline void sync_warp(int line, unsigned mask = 0xffffffffu) {
    wait(AT_WARP, line, SYNC, mask, 0, 0);
}
inline unsigned ballot(int line, unsigned mask, bool in) {
    return unsigned(wait(AT_WARP, line, BALLOT, mask, 0, in));
}

template <class Number> Number gather(int line, unsigned mask, Number x, int source) {
    static_assert(sizeof(Number) <= 8, "shuffles move up to 8 bytes");
    u64 in = 0;
    __builtin_memcpy(&in, &x, sizeof x);
    in = wait(AT_WARP, line, GATHER, mask, source, in);
    __builtin_memcpy(&x, &in, sizeof x);
    return x;
}
template <class N> N shfl(int line, unsigned mask, N x, int source, int width = 32) {
    return gather(line, mask, x, (own_lane() & ~(width - 1)) | (source & (width - 1)));
}
template <class N> N shfl_xor(int line, unsigned mask, N x, int bits, int width = 32) {
    const int to = own_lane() ^ bits, end = own_lane() | (width - 1);
    return gather(line, mask, x, to > end ? own_lane() : to);
}
template <class N> N shfl_up(int line, unsigned mask, N x, unsigned by, int width = 32) {
    const int to = own_lane() - int(by), begin = own_lane() & ~(width - 1);
    return gather(line, mask, x, to < begin ? own_lane() : to);
}
template <class N> N shfl_down(int line, unsigned mask, N x, unsigned by, int width = 32) {
    const int to = own_lane() + int(by), end = own_lane() | (width - 1);
    return gather(line, mask, x, to > end ? own_lane() : to);
}

// ------------------------------------------------------------------------------------- launching

template <class A> struct Kind {  // of a struct
    static_assert(__is_class(A), "Python sends 64-bit integers and floats, addresses and structs");
    static const char value = 's';
};
template <> struct Kind<long long> { static const char value = 'i'; };
template <> struct Kind<double> { static const char value = 'd'; };
template <class A> struct Kind<A*> { static const char value = 'p'; };

template <int... I> struct Indices {};
template <int COUNT, int... I> struct UpTo : UpTo<COUNT - 1, COUNT - 1, I...> {};
template <int... I> struct UpTo<0, I...> { typedef Indices<I...> type; };

// A kernel takes long long, double, pointers, and structs by value: that is what Python sends.
template <class... A> struct Call {
    static void (*kernel)(A...);
    static void* const* arguments;

    template <int... I> static void with(Indices<I...>) {
        kernel(*static_cast<A*>(arguments[I])...);
    }
    static void body() { with(typename UpTo<sizeof...(A)>::type()); }
};
template <class... A> void (*Call<A...>::kernel)(A...);
template <class... A> void* const* Call<A...>::arguments;

template <class... A>
void launch(void (*kernel)(A...), const Launch& asked, void* const* arguments, const char* kinds) {
    const char wanted[] = {Kind<A>::value..., 0};
    bool fits = true;
    if (kinds) {  // a driver, who gets addresses alone, does not know them
        fits = __builtin_strlen(kinds) == sizeof...(A);
        for (unsigned k = 0; fits && k < sizeof...(A); ++k)  // an address may come as an integer
            fits = wanted[k] == kinds[k] || (wanted[k] == 'p' && kinds[k] == 'i');
    }
    if (!fits) return refuse(wanted, kinds);
    Call<A...>::kernel = kernel;
    Call<A...>::arguments = arguments;
    run_grid(Call<A...>::body, asked);
}

}  // namespace fg

#define FG_EXPORT(name)                                                                          \
    extern "C" void fg_launch_##name(const fg::Launch* asked, void* const* arguments,            \
                                     const char* kinds) {                                        \
        fg::launch(name, *asked, arguments, kinds);                                              \
    }

#define FG_DYNAMIC_SHARED(type, name) type* const name = reinterpret_cast<type*>(fg::dynamic_shared())

// ------------------------------------------------------------------------- functions of CUDA C++

#define __syncthreads() ((void)fg::barrier(__LINE__))
#define __syncthreads_count(x) (int(fg::barrier(__LINE__, (x) != 0)))
#define __syncthreads_or(x) (int(fg::barrier(__LINE__, (x) != 0) != 0))
#define __syncthreads_and(x) (int(fg::barrier(__LINE__, (x) == 0) == 0))
#define __syncwarp(...) (fg::sync_warp(__LINE__ __VA_OPT__(, ) __VA_ARGS__))
#define __shfl_sync(...) (fg::shfl(__LINE__, __VA_ARGS__))
#define __shfl_xor_sync(...) (fg::shfl_xor(__LINE__, __VA_ARGS__))
#define __shfl_up_sync(...) (fg::shfl_up(__LINE__, __VA_ARGS__))
#define __shfl_down_sync(...) (fg::shfl_down(__LINE__, __VA_ARGS__))
#define __ballot_sync(mask, x) (fg::ballot(__LINE__, mask, (x) != 0))
#define __any_sync(mask, x) (int(fg::ballot(__LINE__, mask, (x) != 0) != 0))
#define __all_sync(mask, x) (int(fg::ballot(__LINE__, mask, (x) == 0) == 0))

namespace fg {
template <class N> struct Same { typedef N type; };
}

inline void __threadfence() { fg::fence(); }

// Atomic operations order nothing but themselves. `change` gives the new value for the old one.
template <class N, class Change> N fg_atomic(N* place, Change change) {
    fg::atomic(place);
    N before, after;
    __atomic_load(place, &before, __ATOMIC_RELAXED);
    do after = change(before);
    while (!__atomic_compare_exchange(place, &before, &after, false, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED));
    return before;
}
template <class N> N atomicAdd(N* place, typename fg::Same<N>::type by) {
    return fg_atomic(place, [=](N x) { return N(x + by); });
}
template <class N> N atomicMax(N* place, typename fg::Same<N>::type by) {
    return fg_atomic(place, [=](N x) { return by > x ? by : x; });
}
template <class N> N atomicMin(N* place, typename fg::Same<N>::type by) {
    return fg_atomic(place, [=](N x) { return by < x ? by : x; });
}
template <class N> N atomicOr(N* place, typename fg::Same<N>::type by) {
    return fg_atomic(place, [=](N x) { return N(x | by); });
}
template <class N> N atomicExch(N* place, typename fg::Same<N>::type by) {
    return fg_atomic(place, [=](N) { return by; });
}
template <class N> N atomicCAS(N* place, typename fg::Same<N>::type old, typename fg::Same<N>::type by) {
    return fg_atomic(place, [=](N x) { return x == old ? by : x; });
}

template <class N> N __ldg(const N* place) { return *place; }
template <class N> N __ldcs(const N* place) { return *place; }
template <class N> N __ldcg(const N* place) { return *place; }
template <class N> void __stcs(N* place, typename fg::Same<N>::type x) { *place = x; }
template <class N> void __stcg(N* place, typename fg::Same<N>::type x) { *place = x; }

template <class To, class From> To fg_bits(From x) {
    static_assert(sizeof(To) == sizeof(From), "");
    To y;
    __builtin_memcpy(&y, &x, sizeof x);
    return y;
}
inline unsigned __float_as_uint(float x) { return fg_bits<unsigned>(x); }
inline int __float_as_int(float x) { return fg_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return fg_bits<float>(x); }
inline float __int_as_float(int x) { return fg_bits<float>(x); }
inline long long __double_as_longlong(double x) { return fg_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return fg_bits<double>(x); }
inline int __double2hiint(double x) { return int(fg_bits<unsigned long long>(x) >> 32); }
inline int __double2loint(double x) { return int(fg_bits<unsigned long long>(x)); }

inline float __fmaf_rn(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
inline double __fma_rn(double x, double y, double z) { return __builtin_fma(x, y, z); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fsqrt_rn(float x) { return __builtin_sqrtf(x); }
inline double __dadd_rn(double x, double y) { return x + y; }
inline double __dsub_rn(double x, double y) { return x - y; }
inline double __dmul_rn(double x, double y) { return x * y; }
inline double __ddiv_rn(double x, double y) { return x / y; }
inline double __dsqrt_rn(double x) { return __builtin_sqrt(x); }
inline float __double2float_rn(double x) { return float(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }


template <class A, class B> auto min(A a, B b) -> decltype(true ? A() : B()) {
    typedef decltype(true ? A() : B()) Both;
    return Both(a) < Both(b) ? Both(a) : Both(b);
}
template <class A, class B> auto max(A a, B b) -> decltype(true ? A() : B()) {
    typedef decltype(true ? A() : B()) Both;
    return Both(a) > Both(b) ? Both(a) : Both(b);
}
extern "C" {
void* memcpy(void*, const void*, decltype(sizeof 0));
void* memset(void*, int, decltype(sizeof 0));
float fabsf(float);
float sqrtf(float);
double fabs(double);
double sqrt(double);
}

// Minimum and maximum as PTX has them: -0 comes before +0, and NaN is dropped. With FG_FLUSH, what
// is subnormal counts as zero of its sign, and comes out as that.
inline float fg_operand(float x) {
#ifdef FG_FLUSH
    if (!(__float_as_uint(x) & 0x7f800000u)) return __uint_as_float(__float_as_uint(x) & 0x80000000u);
#endif
    return x;
}
inline double fg_operand(double x) { return x; }
template <class N> bool fg_first(N x, N y) {
    return x < y || (x == y && __builtin_signbit(x)) || y != y;
}
inline float fminf(float a, float b) {
    const float x = fg_operand(a), y = fg_operand(b);
    return fg_first(x, y) ? x : y;
}
inline float fmaxf(float a, float b) {
    const float x = fg_operand(a), y = fg_operand(b);
    return fg_first(x, y) && y == y ? y : x == x ? x : y;
}
inline double fmin(double x, double y) { return fg_first(x, y) ? x : y; }
inline double fmax(double x, double y) { return fg_first(x, y) && y == y ? y : x == x ? x : y; }

// float16 as IEEE 754 says, without help of the machine.
inline float host_half_to_float(unsigned short half) {
    const unsigned sign = unsigned(half & 0x8000u) << 16, exponent = half >> 10 & 31u;
    const unsigned fraction = half & 0x3ffu;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | fraction << 13);
    if (exponent == 0) return __uint_as_float(sign | __float_as_uint(__builtin_ldexpf(float(fraction), -24)));
    return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
}
inline unsigned short host_float_to_half(float x) {
    const unsigned bits = __float_as_uint(x), sign = bits >> 16 & 0x8000u;
    const float size = __builtin_fabsf(x);
    if (size != size) return (unsigned short)(sign | 0x7e00u | (bits >> 13 & 0x1ffu));
    if (size >= 65520.0f) return (unsigned short)(sign | 0x7c00u);
    if (size < 6.103515625e-05f)  // subnormal in half precision: a multiple of 2^-24
        return (unsigned short)(sign | unsigned(__builtin_nearbyintf(__builtin_ldexpf(size, 24))));
    const unsigned rest = (bits & 0x7fffffffu) - (112u << 23);
    return (unsigned short)(sign | (rest + 0xfffu + (rest >> 13 & 1u)) >> 13);
}
