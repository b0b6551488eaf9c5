// One order statistic of every column: median, trimmed mean, k-th value, any weights over ranks,
// and the mean of the k values closest to one of those (MeaMed, Phocas) - of the rows themselves,
// of picked rows, or of a mixing W X that is never stored. Of up to about a hundred values; of more
// in `tiles.cu`.
//
// Bytes that must move: every row once, and the result: (n + 1) * columns * sizeof(T).
//
// One thread has FG_PACK neighbouring columns. It reads FG_PACK numbers of each row with one
// instruction, so a warp reads whole cache lines, and all n reads are under way at once. The FG_N
// values of a column lie in registers; a comparator network, pruned to the wanted ranks and written
// out by the preprocessor, needs one minimum and one maximum per comparator and no branch, and every
// index is a constant.
//
//   FG_MIX, FG_CONDENSE, FG_RANKS: as in columns.cuh
//   FG_PACK, FG_NETWORK (a list of X(i, j)), FG_N, FG_LOW, FG_HIGH, FG_CLOSEST: as above
//   FG_WIDE      columns that one instruction moves
//   FG_ROWS      rows that are mixed; FG_AHEAD of them are under way at a time, and of FG_PART the
//                weights are in shared memory
//   FG_BLOCKS    of these that should fit a multiprocessor: what its registers are shared by

#include "columns.cuh"

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
