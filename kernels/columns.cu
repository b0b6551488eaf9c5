// One order statistic of every column: median, trimmed mean, k-th value, any weights over ranks,
// and the mean of the k values closest to one of those (MeaMed, Phocas) - of the rows themselves,
// of picked rows, or of a mixing W X that is never stored.
//
// Bytes that must move: every row once, and the result: (n + 1) * columns * sizeof(T).
//
// With FG_NETWORK (up to about a hundred values): one thread has FG_PACK neighbouring columns. It
// reads FG_PACK numbers of each row with one instruction, so a warp reads whole cache lines, and
// all n reads are under way at once. The FG_N values of a column lie in registers; a comparator
// network, pruned to the wanted ranks and written out by the preprocessor, needs one minimum and
// one maximum per comparator and no branch, and every index is a constant.
//
// Without (any number of values): a block has a tile of FG_WIDTH columns in shared memory (past
// what fits there: in `scratch`, in global memory, one tile per block) and sorts it: runs of 16 in
// registers, then bitonic merges.
//
// Both do the arithmetic of the kernels for the CPU in the same order, and give the same bits. The
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
//   FG_PACK, FG_NETWORK (a list of X(i, j)), FG_N, FG_LOW, FG_HIGH, FG_CLOSEST: as above
//   FG_WIDE      columns that one instruction moves
//   FG_ROWS      rows that are mixed; FG_AHEAD of them are under way at a time, and of FG_PART the
//                weights are in shared memory
//   FG_BLOCKS    of these that should fit a multiprocessor: what its registers are shared by
//   FG_WIDTH, FG_SORT16 (a network), FG_SCRATCH: as above
//
// fastgar/cuda/variants.py chooses them.

#include "common.cuh"

// ------------------------------------------------------------------------------- what both share

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

#ifdef FG_NETWORK  // ================================================================ in registers

constexpr int N = FG_N, K = FG_PACK, WIDE = FG_WIDE;
constexpr int LOW = FG_LOW, HIGH = FG_HIGH, CLOSEST = FG_CLOSEST;
constexpr int THREADS = 128;

// Count what is not finite and make NaN +Inf; return whether there is too much of it. The usual
// case costs one multiply-add a value.
__device__ __forceinline__ bool clean(C (&v)[N], long long faults) {
    C partial[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < N; ++i) partial[i % 4] = multiply_add(v[i], 0, partial[i % 4]);
    if (!is_nan((partial[0] + partial[1]) + (partial[2] + partial[3]))) return false;
    int count = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        count += !is_finite(v[i]);
        if (is_nan(v[i])) v[i] = infinity<C>();
    }
    return count > faults;
}

// Mean of `SIZE` of the values, at a scale at which it cannot overflow: four partial sums.
template <int SIZE> __device__ __forceinline__ C mean(const C* v) {
    if (SIZE == 1) return v[0];
    const C scale = sum_scale(SIZE);  // a constant, once unrolled
    C partial[4];
#pragma unroll
    for (int i = 0; i < SIZE; ++i)
        partial[i % 4] = i < 4 ? v[i] * scale : multiply_add(v[i], scale, partial[i % 4]);
    C total = partial[0] + partial[1];
    if (SIZE == 3) total = total + partial[2];
    if (SIZE >= 4) total = total + (partial[2] + partial[3]);
    const C divisor = SIZE * scale;
    return divisor == 1 ? total : divide(total, divisor);
}

// Sum of the sorted values weighted by rank.
__device__ __forceinline__ C weighted(const C (&v)[N], const double* ranks) {
    const C nothing = static_cast<C>(-0.0);
    C partial[4] = {nothing, nothing, nothing, nothing};
#pragma unroll
    for (int i = LOW; i < HIGH; ++i) {
        const C weight = static_cast<C>(__ldg(ranks + i));
        partial[(i - LOW) % 4] = multiply_add(v[i], weight, partial[(i - LOW) % 4]);
    }
    return (partial[0] + partial[1]) + (partial[2] + partial[3]);
}

// The statistic of one column; the values end up in another order.
__device__ __forceinline__ C statistic(C (&v)[N], const double* ranks, long long faults) {
    const bool poisoned = clean(v, faults);
#define X(i, j) exchange(v[i], v[j]);
    FG_NETWORK
#undef X
#if FG_RANKS
    C value = weighted(v, ranks);
#else
    C value = mean<HIGH - LOW>(v + LOW);
#endif
#if FG_CLOSEST
    C window[CLOSEST];  // slides upwards while that brings it nearer to the centre
#pragma unroll
    for (int i = 0; i < CLOSEST; ++i) window[i] = v[i];
#pragma unroll
    for (int t = 0; t < N - CLOSEST; ++t)
        window[t % CLOSEST] = nearer(v[t + CLOSEST], v[t], value) ? v[t + CLOSEST]
                                                                  : window[t % CLOSEST];
    value = mean<CLOSEST>(window);
#endif
    return poisoned ? not_a_number<C>() : value;
}

#if FG_MIX == 1
// The weights wait in shared memory, transposed: those of one row for all m mixed rows in a line,
// four at a time with one instruction. Where not all rows of W X fit, part after part of them.
constexpr int ROWS = FG_ROWS, PART = FG_PART, AHEAD = FG_AHEAD;
constexpr int PADDED = (N + 3) / 4 * 4;
constexpr int LAST = (ROWS - 1) % AHEAD + 1;           // rows of the last turn
static_assert(PART == ROWS || PART % AHEAD == 0, "");  // no other is shorter
struct alignas(4 * sizeof(C)) Four {
    C w[4];
};

__device__ __forceinline__ void stage(C* weights, const double* W, long long pitch, int from,
                                      int count) {
    constexpr int LOADS = 4;  // under way; past the end of W, of its first number
    for (int at = thread_index(); at < count * PADDED; at += LOADS * THREADS) {
        double w[LOADS];
#pragma unroll
        for (int a = 0; a < LOADS; ++a) {
            const int place = at + a * THREADS, i = place % PADDED, r = from + place / PADDED;
            w[a] = __ldg(W + (i < N && r < ROWS ? i * pitch + r : 0));
        }
#pragma unroll
        for (int a = 0; a < LOADS; ++a) {
            const int place = at + a * THREADS;
            if (place < count * PADDED) weights[place] = static_cast<C>(w[a]);
        }
    }
}

// Add a row to all values, each times its weight; CHECKED leaves out those of weight 0, for rows
// that have numbers that are not finite: 0 * NaN would be NaN.
template <bool CHECKED>
__device__ __forceinline__ void add_row(C (&v)[K][N], const Pack<K, WIDE>& x, const C* weights) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
        const Four four = *reinterpret_cast<const Four*>(weights + i);
#pragma unroll
        for (int q = 0; q < 4; ++q)
            if (i + q < N && !(CHECKED && four.w[q] == 0)) {
#pragma unroll
                for (int k = 0; k < K; ++k)
                    v[k][i + q] = multiply_add(x[k], four.w[q], v[k][i + q]);
            }
    }
}

// The values of K columns of W X, from column j on.
__device__ __forceinline__ void mix(C (&v)[K][N], C* weights, const double* W, long long pitch,
                                    const void* rows, long long stride, long long j,
                                    long long columns) {
#pragma unroll
    for (int k = 0; k < K; ++k)
#pragma unroll
        for (int i = 0; i < N; ++i) v[k][i] = static_cast<C>(-0.0);
    const char* next = reinterpret_cast<const char*>(static_cast<const T*>(rows) + j);
    for (int from = 0; from < ROWS; from += PART) {
        const int count = ROWS - from < PART ? ROWS - from : PART;
        if (PART < ROWS) {
            __syncthreads();  // the part before may still be in use
            stage(weights, W, pitch, from, count);
            __syncthreads();
        }
        if (j >= columns) continue;
        const C* line = weights;
#pragma unroll 1
        for (int first = from; first < from + count; first += AHEAD, line += AHEAD * PADDED) {
            const bool more = first + AHEAD < ROWS;  // turns to come, so that this one is whole
            const auto place = [&](int a) {  // of the last row once more, where there are no more
#if FG_TABLE
                return row(rows, stride, a < LAST || more ? first + a : first) + j;
#else
                hide(next);
                const T* const here = reinterpret_cast<const T*>(next);
                next += a + 1 < LAST || a + 1 == AHEAD || more ? stride : 0;
                return here;
#endif
            };
            Pack<K, WIDE> x[AHEAD];
            load_rows(x, place, AHEAD, 0, columns - j);
            C product = 0;  // not finite where a number is not; where it overflows, time is lost
#pragma unroll
            for (int a = 0; a < AHEAD; a += 2)
#pragma unroll
                for (int k = 0; k < K; ++k) product = multiply_add(x[a][k], x[a + 1][k], product);
            if (is_finite(product)) {
#pragma unroll
                for (int a = 0; a < AHEAD; ++a)
                    if (a < LAST || more) add_row<false>(v, x[a], line + a * PADDED);
            } else {
#pragma unroll
                for (int a = 0; a < AHEAD; ++a)
                    if (a < LAST || more) add_row<true>(v, x[a], line + a * PADDED);
            }
        }
    }
}
#endif

// Where rows have no stride, their addresses wait in shared memory. Read from global memory by each
// thread, they come far ahead of the rows, and hold two registers each.
#define FG_LISTED (FG_MIX == 2 || (FG_TABLE && FG_MIX == 0))

extern "C" __global__ void __launch_bounds__(THREADS, FG_BLOCKS)
columns(const void* rows, long long stride, long long n, const void* mixing, long long pitch,
        long long m, long long low, long long high, long long closest, const double* ranks,
        long long faults, long long key, double probability, long long offset, void* out,
        long long count, void* scratch) {
    const Work work = work_of(rows, stride, n, out, count, offset);
    const long long step = work.blocks * THREADS * K, begin = work.block * THREADS * K;
    const int own = thread_index() * K;  // of the columns of a tile
    const bool empty = nothing_picked(mixing);
#if FG_MIX == 1
    FG_DYNAMIC_SHARED(C, weights);
    const double* W = static_cast<const double*>(mixing);
    if (PART == ROWS) {
        stage(weights, W, pitch, 0, ROWS);
        __syncthreads();
    }
#endif
#if FG_LISTED
    __shared__ const T* places[N];
    static_assert(N <= THREADS, "");
    if (thread_index() < N)
        places[thread_index()] =
            empty ? row(work.rows, stride, 0) : source(work.rows, stride, mixing, thread_index());
    __syncthreads();
#endif
    const long long columns = work.columns;
    for (long long j = begin + own; j - own < columns; j += step) {
#if FG_MIX == 1
        C v[K][N];
        mix(v, weights, W, pitch, work.rows, stride, j, columns);
#else
        Pack<K, WIDE> packs[N];
        const char* next = static_cast<const char*>(work.rows);
        const auto place = [&](int i) {
#if FG_LISTED
            const T* here = places[i];
            hide(here);
#else
            hide(next);
            const T* here = reinterpret_cast<const T*>(next);
            next += stride;
#endif
            return here;
        };
        if (j < columns) load_rows(packs, place, N, j, columns);
#endif
        if (j >= columns) continue;
        const T* first = FG_CONDENSE ? row(work.rows, stride, 0) : nullptr;
        Pack<K, WIDE> results;
#pragma unroll
        for (int k = 0; k < K; ++k) {
#if FG_MIX == 1
            C value = statistic(v[k], ranks, faults);
#else
            C v[N];
#pragma unroll
            for (int i = 0; i < N; ++i) {
                v[i] = packs[i][k];
                opaque(v[i]);  // or what was read is kept as well, to test its bits (bfloat16)
            }
            C value = statistic(v, ranks, faults);
            if (empty) value = not_a_number<C>();
#endif
            if (j + k < columns)
                results.item[k] = result(value, first, j + k, key, probability, work.offset);
        }
        T* target = static_cast<T*>(work.out) + j;
        if (j + K <= columns) {
            store_pack(target, results);
        } else {
#pragma unroll
            for (int k = 0; k < K; ++k)
                if (j + k < columns) target[k] = results.item[k];
        }
    }
}

#else  // ====================================================================== sorted in a tile

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

// Put a value into the tile, and count it if it is not finite.
__device__ __forceinline__ void place_in(C* tile, int* bad, Index i, int c, C x) {
    if (!is_finite(x)) {
        atomicAdd(&bad[c], 1);
        if (is_nan(x)) x = infinity<C>();
    }
    tile[at(i, c)] = x;
}

extern "C" __global__ void __launch_bounds__(256, BLOCKS)
columns(const void* rows, long long stride, long long n, const void* mixing, long long pitch,
        long long values, long long lowest, long long highest, long long nearest,
        const double* ranks,
        long long faults, long long key, double probability, long long offset, void* out,
        long long columns, void* scratch) {
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
                Index begin = 0, end = m - closest;  // the window begins where sliding stops
                while (begin < end) {
                    const Index middle = (begin + end) / 2;
                    if (nearer(tile[at(middle + closest, w.c)], tile[at(middle, w.c)], value))
                        begin = middle + 1;
                    else
                        end = middle;
                }
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

#endif
