// The statistics of columns.cu, of any number of values: those that are too many for registers.
//
// Bytes that must move: every row once, and the result: (n + 1) * columns * sizeof(T).
//
// A block has a tile of FG_WIDTH columns in shared memory (past what fits there: in `scratch`, in
// global memory, one tile per block) and sorts it: runs of 16 in registers, then bitonic merges.
//
//   FG_MIX, FG_CONDENSE, FG_RANKS: as in columns.cuh
//   FG_WIDTH     columns of a tile
//   FG_SORT16    a network of 16: a list of X(i, j)
//   FG_SCRATCH   1: tiles lie in `scratch`

#include "columns.cuh"

constexpr int WIDTH = FG_WIDTH;
constexpr int AHEAD = 8;  // rows under way
// Blocks of a multiprocessor: as many as do without local memory.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int BLOCKS = FG_SCRATCH ? 1 : 2;
#else
constexpr int BLOCKS = (FG_SCRATCH ? 2 : FG_TABLE ? 3 : 4) - (sizeof(C) == 8 ? 1 : 0);
#endif
#if FG_SCRATCH
typedef long long Index;
#else
typedef int Index;  // of what fits in shared memory
#endif

// Where the tile has row i of column c. A line is left free after every 16 rows, so that threads
// that work on neighbouring runs of 16 use different banks.
__device__ __forceinline__ Index at(Index i, int c) { return (i + i / 16) * WIDTH + c; }

struct Worker {  // what a thread works on: column c, and every `step`-th piece from `first` on
    int c;
    Index first, step;
};

// Sort each run of 16 rows, or merge it if it rises and falls. There are m rows, whole runs.
__device__ __forceinline__ void each_run(C* tile, Index m, const Worker& w, bool merge) {
    for (Index run = w.first; run * 16 < m; run += w.step) {
        C v[16];
#pragma unroll
        for (int i = 0; i < 16; ++i) v[i] = tile[at(run * 16 + i, w.c)];
        if (merge) {
#pragma unroll
            for (int stride = 8; stride > 0; stride /= 2)
#pragma unroll
                for (int i = 0; i < 16; ++i)
                    if (!(i & stride)) exchange(v[i], v[i + stride]);
        } else {
#define X(i, j) exchange(v[i], v[j]);
            FG_SORT16
#undef X
        }
#pragma unroll
        for (int i = 0; i < 16; ++i) tile[at(run * 16 + i, w.c)] = v[i];
    }
}

// Compare row i of the first half of each run of 2 * size rows with its mirror image, or with row i
// of the second half: two pairs at a time, so that four loads are under way.
template <bool MIRROR>
__device__ __forceinline__ void compare(C* tile, Index m, int log_size, const Worker& w) {
    constexpr int PAIRS = 2;
    const Index size = Index(1) << log_size;
    for (Index p = w.first; (p >> log_size) * 2 * size + size < m; p += PAIRS * w.step) {
        Index low[PAIRS], high[PAIRS];
        C x[PAIRS], y[PAIRS];
#pragma unroll
        for (int a = 0; a < PAIRS; ++a) {
            const Index pair = p + a * w.step, i = pair & (size - 1), start = 2 * (pair - i);
            low[a] = start + i;
            high[a] = MIRROR ? start + 2 * size - 1 - i : low[a] + size;
            if (high[a] >= m) continue;
            x[a] = tile[at(low[a], w.c)];
            y[a] = tile[at(high[a], w.c)];
        }
#pragma unroll
        for (int a = 0; a < PAIRS; ++a) {
            if (high[a] >= m) continue;
            exchange(x[a], y[a]);
            tile[at(low[a], w.c)] = x[a];
            tile[at(high[a], w.c)] = y[a];
        }
    }
}

// Half-cleaners at a stride and at half of it: four rows at a time. Those from m on are +Inf, and
// as the larger always moves to the higher row, they stay so without being there.
__device__ __forceinline__ void clean_twice(C* tile, Index m, int log_stride, const Worker& w) {
    const Index stride = Index(1) << log_stride, half = stride / 2;
    for (Index p = w.first;; p += w.step) {
        const Index a = (p >> (log_stride - 1)) * 2 * stride + (p & (half - 1));
        if (a - (p & (half - 1)) >= m) break;
        C v[4];
#pragma unroll
        for (int q = 0; q < 4; ++q)
            v[q] = a + q * half < m ? tile[at(a + q * half, w.c)] : infinity<C>();
        exchange(v[0], v[2]);
        exchange(v[1], v[3]);
        exchange(v[0], v[1]);
        exchange(v[2], v[3]);
#pragma unroll
        for (int q = 0; q < 4; ++q)
            if (a + q * half < m) tile[at(a + q * half, w.c)] = v[q];
    }
}

__device__ __forceinline__ void sort_tile(C* tile, Index m, const Worker& w) {
    each_run(tile, m, w, false);
    __syncthreads();
    for (int log_size = 4; (Index(1) << log_size) < m; ++log_size) {
        compare<true>(tile, m, log_size, w);
        __syncthreads();
        int log_stride = log_size - 1;
        for (; log_stride >= 5; log_stride -= 2) {
            clean_twice(tile, m, log_stride, w);
            __syncthreads();
        }
        if (log_stride == 4) {
            compare<false>(tile, m, log_stride, w);
            __syncthreads();
        }
        each_run(tile, m, w, true);
        __syncthreads();
    }
}

// One value of W X, without reading rows of weight 0.
__device__ __forceinline__ C mixed(const void* rows, long long stride, long long n, const double* W,
                                   long long column) {
    C total = static_cast<C>(-0.0);
#pragma unroll 1
    for (long long r = 0; r < n; r += 4) {
        double known[4];
        C weight[4];
        T x[4];
#pragma unroll
        for (int a = 0; a < 4; ++a) known[a] = __ldg(W + (r + a < n ? r + a : r));
#pragma unroll
        for (int a = 0; a < 4; ++a) weight[a] = r + a < n ? static_cast<C>(known[a]) : C(0);
#pragma unroll
        for (int a = 0; a < 4; ++a)
            x[a] = weight[a] != 0 ? __ldg(row(rows, stride, r + a) + column) : T(0);
#pragma unroll
        for (int a = 0; a < 4; ++a)
            if (weight[a] != 0) total = multiply_add(widen(x[a]), weight[a], total);
    }
    return total;
}

// Sum of every fourth value from `first` on, times its own weight or times `scale`.
template <class Rank>
__device__ __forceinline__ C sum(const C* tile, int c, Index first, Index end, Rank rank,
                                 const double* weights, C scale) {
    constexpr int TERMS = 4;  // under way
    C total = static_cast<C>(-0.0);
    for (Index i = first; i < end; i += 4 * TERMS) {
        double own[TERMS];
        C x[TERMS];
#pragma unroll
        for (int a = 0; a < TERMS; ++a) {  // past the last value, this one again
            const Index here = i + 4 * a < end ? i + 4 * a : i;
            x[a] = tile[at(rank(here), c)];
            own[a] = weights ? __ldg(weights + here) : 0.0;
        }
#pragma unroll
        for (int a = 0; a < TERMS; ++a)
            if (i + 4 * a < end)
                total = multiply_add(x[a], weights ? static_cast<C>(own[a]) : scale, total);
    }
    return total;
}

// Where the window of the `closest` values nearest to the centre begins: where sliding stops. Of two
// places at a time, so that four loads are under way.
__device__ __forceinline__ Index window_begin(const C* tile, Index m, Index closest, int c,
                                              C centre) {
    Index begin = 0, end = m - closest;  // it is in [begin, end]
#pragma unroll 1
    while (begin < end) {
        const Index third = (end - begin) / 3, low = begin + third, high = end - 1 - third;
        const C one[2] = {tile[at(low, c)], tile[at(low + closest, c)]};
        const C two[2] = {tile[at(high, c)], tile[at(high + closest, c)]};
        const bool above = nearer(two[1], two[0], centre), inside = nearer(one[1], one[0], centre);
        begin = above ? high + 1 : inside ? low + 1 : begin;
        end = above ? end : inside ? high : low;
    }
    return begin;
}

// Put a value into the tile, and count it if it is not finite.
__device__ __forceinline__ void place_in(C* tile, int* bad, Index i, int c, C x) {
    if (!is_finite(x)) {
        atomicAdd(&bad[c], 1);
        if (is_nan(x)) x = infinity<C>();
    }
    tile[at(i, c)] = x;
}

extern "C" __global__ void __launch_bounds__(256, BLOCKS)
tiles(const void* rows, long long stride, long long n, const void* mixing, long long pitch,
      long long values, long long lowest, long long highest, long long nearest,
      const double* ranks, long long faults, long long key, double probability, long long offset,
      void* out, long long columns, void* scratch) {
    __shared__ int bad[WIDTH];
    __shared__ C partial[4 * WIDTH];
    const Work work = work_of(rows, stride, n, out, columns, offset);
    const Index m = static_cast<Index>(values), closest = static_cast<Index>(nearest);
    const Index low = static_cast<Index>(lowest), high = static_cast<Index>(highest);
    const Index whole = (m + 15) / 16 * 16;  // rows of the tile: runs are filled up with +Inf
#if FG_SCRATCH
    C* tile = static_cast<C*>(scratch) + blockIdx.x * at(whole, 0);
#else
    FG_DYNAMIC_SHARED(C, tile);
#endif
    const Worker w = {thread_index() % WIDTH, thread_index() / WIDTH, blockDim.x / WIDTH};
    const bool empty = nothing_picked(mixing);
    const bool adds = w.first < 4;  // four threads add up each column
    const C scale = FG_RANKS ? C(1) : sum_scale(high - low);
    const C window_scale = closest ? sum_scale(closest) : C(1);
    for (long long number = work.block; number * WIDTH < work.columns; number += work.blocks) {
        const long long j = number * WIDTH + w.c;
        const long long column = j < work.columns ? j : 0;  // past the last one, any that is there
        const void* const own = work.rows;
        if (thread_index() < WIDTH) bad[thread_index()] = 0;
        __syncthreads();
#if FG_MIX == 1
        for (Index i = w.first; i < m; i += w.step) {
            const double* const W = static_cast<const double*>(mixing) + i * pitch;
            place_in(tile, bad, i, w.c, mixed(own, stride, n, W, column));
        }
#else
        for (Index i = w.first; i < m && !empty; i += AHEAD * w.step) {
            C x[AHEAD];
#pragma unroll
            for (int a = 0; a < AHEAD; ++a) {  // past the last row, this one again
                const Index here = i + a * w.step < m ? i + a * w.step : i;
                x[a] = load(source(own, stride, mixing, here) + column);
            }
#pragma unroll
            for (int a = 0; a < AHEAD; ++a) opaque(x[a]);  // or each is loaded where it is needed
#pragma unroll
            for (int a = 0; a < AHEAD; ++a)
                if (i + a * w.step < m) place_in(tile, bad, i + a * w.step, w.c, x[a]);
        }
#endif
        for (Index i = m + w.first; i < whole; i += w.step) tile[at(i, w.c)] = infinity<C>();
        __syncthreads();
        sort_tile(tile, whole, w);
        if (adds) {
            const auto same = [](Index rank) { return rank; };
            const double* const weights = FG_RANKS ? ranks : nullptr;
            partial[w.first * WIDTH + w.c] =
                sum(tile, w.c, low + w.first, high, same, weights, scale);
        }
        __syncthreads();
        const C* p = partial + w.c;
        C value = (p[0] + p[WIDTH]) + (p[2 * WIDTH] + p[3 * WIDTH]);
        if (!FG_RANKS) value = divide(value, static_cast<C>(high - low) * scale);
        if (closest) {
            __syncthreads();  // all have read the partial sums
            if (adds) {
                const Index begin = window_begin(tile, m, closest, w.c, value);
                const auto moved = [&](Index slot) {  // of ranks that leave this rest, that in it
                    const Index turns = (begin - slot + closest - 1) / closest;
                    return slot < begin ? slot + turns * closest : slot;
                };
                partial[w.first * WIDTH + w.c] =
                    sum(tile, w.c, w.first, closest, moved, nullptr, window_scale);
            }
            __syncthreads();
            value = (p[0] + p[WIDTH]) + (p[2 * WIDTH] + p[3 * WIDTH]);
            value = divide(value, static_cast<C>(closest) * window_scale);
        }
        if (empty || bad[w.c] > faults) value = not_a_number<C>();
        if (w.first == 0 && j < work.columns) {
            const T* first = FG_CONDENSE ? row(work.rows, stride, 0) : nullptr;
            static_cast<T*>(work.out)[j] = result(value, first, j, key, probability, work.offset);
        }
        __syncthreads();  // tile, partial and bad are used again
    }
}
