// From squared distances to weights, in one block: Krum, Multi-Krum, Bulyan's picks, the mixing of
// nearest neighbours (NNM), and CGE. The decision stays on the device, so that a whole rule runs
// without the host waiting for it.
//
// Bytes that must move: D once, 8 * n * n (0.5 MB for 256 rows, which stays in the cache); what
// counts is the number of dependent steps. Each warp takes a row of D, sorts it in its line of
// shared memory (bitonic), and adds up the least distances. Then one thread per row counts how
// many scores come before its own.
//
// D is (n, n) or larger, `ld` doubles from row to row, as `sqdist` gives it: no NaN; a faulty row
// has +Inf in its row, its column and on the diagonal. Faulty rows come last, ties go to the lowest
// index, and sums are formed in the order in which NumPy forms them (pairwise, with eight partial
// sums): the results are those of the rules on the CPU, to the last bit. More than f faulty rows:
// every weight is NaN and every pick -1, so that what follows is NaN.
//
// Launch: one block of whole warps; dynamic shared memory as `selection_shape` in
// fastgar/cuda/variants.py says. n is at most 1024.

#include "common.cuh"

constexpr u64 INFINITE = 0x7ff0000000000000ull;
constexpr int AHEAD = 8;    // numbers of D, or of scratch, that a thread has on their way
constexpr int MOST = 1024;  // rows

__device__ __forceinline__ u64 bits_of(double x) {  // in the order of the numbers, from 0 up
    return static_cast<u64>(__double_as_longlong(x));
}
__device__ __forceinline__ double number_of(u64 bits) {
    return __longlong_as_double(static_cast<long long>(bits));
}

// What the block keeps in shared memory.
struct Board {
    double* scores;         // n
    unsigned char* faulty;  // n
    u64* line;              // of this warp: n, rounded up to `padded`
    int n, padded;          // padded: a power of two, at least 32
    bool too_many;          // more than f faulty rows
};

__device__ __forceinline__ Board make_board(u64* shared, const double* D, long long ld, long long n,
                                            long long f) {
    Board board;
    board.n = static_cast<int>(n);
    board.padded = 32;
    while (board.padded < n) board.padded *= 2;
    board.scores = reinterpret_cast<double*>(shared);
    board.faulty = reinterpret_cast<unsigned char*>(shared + n);
    board.line = shared + n + (n + 7) / 8 + warp_index() * board.padded;
    int faulty = 0;
    each<AHEAD>(  // a block's worth of rows at a time
        0, board.n, static_cast<int>(blockDim.x),
        [&](int first) {
            const int i = first + thread_index();
            return D[(i < board.n ? i : 0) * (ld + 1)];
        },
        [&](int first, double flag) {
            const int i = first + thread_index();
            const bool bad = i < board.n && flag != 0;
            if (i < board.n) board.faulty[i] = bad;
            faulty += __syncthreads_count(bad);
        });
    board.too_many = faulty > f;
    return board;
}

// Sort the line of this warp: bitonic merges, the first step of each against the mirror image.
__device__ __forceinline__ void sort_line(const Board& board) {
    u64* line = board.line;
    for (int size = 2; size <= board.padded; size *= 2) {
        for (int stride = size / 2; stride > 0; stride /= 2) {
            __syncwarp();
            for (int p = lane_index(); p < board.padded / 2; p += 32) {
                const int inside = p & (stride - 1);
                const int low = 2 * (p - inside) + inside;
                const int high = 2 * stride == size ? low + size - 1 - 2 * inside : low + stride;
                const u64 a = line[low], b = line[high];
                if (b < a) {
                    line[low] = b;
                    line[high] = a;
                }
            }
        }
    }
    __syncwarp();
}

// Sum of up to 128 numbers, by all lanes of a warp: eight partial sums, as NumPy forms them.
__device__ __noinline__ double sum_of_few(const u64* line, int count) {
    double total = -0.0;
    int i = 0;
    if (count >= 8) {
        const int q = lane_index() & 7;
        total = number_of(line[q]);
        for (i = 8; i + 8 <= count; i += 8) total += number_of(line[i + q]);
        total += __shfl_xor_sync(FG_WARP, total, 1);
        total += __shfl_xor_sync(FG_WARP, total, 2);
        total += __shfl_xor_sync(FG_WARP, total, 4);
    }
    for (; i < count; ++i) total += number_of(line[i]);
    return total;
}

// Sum of the first numbers of a line, by halves as NumPy cuts them: at multiples of eight.
template <int DEPTH> __device__ __forceinline__ double sum_of(const u64* line, int count) {
    if (count <= 128) return sum_of_few(line, count);
    int half = count / 2;
    half -= half % 8;
    const double low = sum_of<DEPTH - 1>(line, half);
    return low + sum_of<DEPTH - 1>(line + half, count - half);
}
template <> __device__ __forceinline__ double sum_of<0>(const u64* line, int count) {
    return sum_of_few(line, count);
}

__device__ __forceinline__ double sum_of_line(const Board& board, long long count) {
    __syncwarp();
    return sum_of<4>(board.line, static_cast<int>(count)) + 0.0;
}

// Whether row j comes before row i: the lower score, a faulty row last, ties by index.
__device__ __forceinline__ bool before(const Board& board, int j, int i) {
    if (board.faulty[j] != board.faulty[i]) return board.faulty[i];
    const double a = board.scores[j], b = board.scores[i];
    if (board.faulty[i] || a == b) return j < i;
    return a < b;
}

// Give the m rows with the least scores equal weights.
__device__ __forceinline__ void mean_of_best(const Board& board, long long m, double* weights) {
    __syncthreads();
    for (int i = thread_index(); i < board.n; i += blockDim.x) {
        int rank = 0;
        for (int j = 0; j < board.n; ++j) rank += before(board, j, i);
        const double share = rank < m ? 1.0 / static_cast<double>(m) : 0.0;
        weights[i] = board.too_many ? not_a_number<double>() : share;
    }
}

// Read a row of D into the line, and sort it.
__device__ __forceinline__ void sorted_row(const Board& board, const double* row) {
    __syncwarp();
    each<AHEAD>(
        lane_index(), board.padded, 32, [&](int j) { return row[j < board.n ? j : 0]; },
        [&](int j, double x) { board.line[j] = j < board.n ? bits_of(x) : ~0ull; });
    sort_line(board);
}

// The score of a row is the sum of its `kept` least distances (its own, 0, among them), squared or
// not; the m rows with the least scores share the weight.
extern "C" __global__ void __launch_bounds__(512, 1)
krum(const double* D, long long ld, long long n, long long f, long long kept, long long squared,
     long long m, double* weights) {
    FG_DYNAMIC_SHARED(u64, shared);
    const Board board = make_board(shared, D, ld, n, f);
    for (int i = warp_index(); i < board.n; i += warps()) {
        sorted_row(board, D + i * ld);
        if (!squared) {
            for (int j = lane_index(); j < kept; j += 32)
                board.line[j] = bits_of(__dsqrt_rn(number_of(board.line[j])));
        }
        const double score = sum_of_line(board, kept);
        if (lane_index() == 0) board.scores[i] = score;
    }
    mean_of_best(board, m, weights);
}

// Mean of the n - f rows closest to the point number `origin` of D.
extern "C" __global__ void __launch_bounds__(512, 1)
cge(const double* D, long long ld, long long n, long long f, long long origin, double* weights) {
    FG_DYNAMIC_SHARED(u64, shared);
    const Board board = make_board(shared, D, ld, n, f);
    each<AHEAD>(
        thread_index(), board.n, static_cast<int>(blockDim.x),
        [&](int i) { return D[i * ld + origin]; },
        [&](int i, double x) { board.scores[i] = __dsqrt_rn(x); });
    mean_of_best(board, n - f, weights);
}

// The order of `Geometry.nearest`: the row itself, then by distance (x from row i to row j), then the
// faulty rows.
__device__ __forceinline__ u64 nearness(const Board& board, double x, int i, int j) {
    if (j >= board.n) return ~0ull;
    if (j == i) return 0;
    return board.faulty[j] ? INFINITE + 2 : bits_of(x) + 1;
}

// Put the nearness of each row to row i into the line.
__device__ __forceinline__ void nearness_of_all(const Board& board, const double* row, int i) {
    __syncwarp();
    each<AHEAD>(
        lane_index(), board.padded, 32, [&](int j) { return row[j < board.n ? j : 0]; },
        [&](int j, double x) { board.line[j] = nearness(board, x, i, j); });
}

// Row i of the mixing: equal weights for the n - f rows nearest to row i, which is one of them.
extern "C" __global__ void __launch_bounds__(512, 1)
nnm(const double* D, long long ld, long long n, long long f, double* mixing) {
    FG_DYNAMIC_SHARED(u64, shared);
    const Board board = make_board(shared, D, ld, n, f);
    const int kept = static_cast<int>(n - f);
    for (int i = warp_index(); i < board.n; i += warps()) {
        const double* row = D + i * ld;
        nearness_of_all(board, row, i);
        sort_line(board);
        const u64 last = board.line[kept - 1];  // of several as far as this, the lowest indices
        int room = 0;
        for (int j = lane_index(); j < kept; j += 32) room += board.line[j] == last;
        room = warp_sum(room);
        const bool bad = board.faulty[i] || board.too_many;
        each<AHEAD>(
            0, board.n, 32,
            [&](int first) {
                const int j = first + lane_index();
                return row[j < board.n ? j : 0];
            },
            [&](int first, double x) {
                const int j = first + lane_index();
                const u64 key = nearness(board, x, i, j);
                const unsigned tied = __ballot_sync(FG_WARP, key == last);
                const int tied_before = __popc(tied & ((1u << lane_index()) - 1u));
                const bool taken = key < last || (key == last && tied_before < room);
                room -= __popc(tied);
                if (j < board.n)
                    mixing[i * n + j] = bad ? not_a_number<double>() : taken ? 1.0 / kept : 0.0;
            });
    }
}

struct Two {
    u64 own, next;
};

// Bulyan's picks: n - 2f times Krum among the rows that are left, of which the nearest
// max(1, left - f - 2) count. `scratch` holds n * n doubles: each row's sorted distances to the
// rows that are left.
extern "C" __global__ void __launch_bounds__(512, 1)
bulyan(const double* D, long long ld, long long n, long long f, long long* picks, u64* scratch) {
    FG_DYNAMIC_SHARED(u64, shared);
    __shared__ int best;
    const Board board = make_board(shared, D, ld, n, f);
    unsigned char* passed = board.faulty;  // from here on
    const int count = static_cast<int>(n - 2 * f);
    if (board.too_many) {
        for (int k = thread_index(); k < count; k += blockDim.x) picks[k] = -1;
        return;
    }
    for (int k = 0; k < count; ++k) {
        const int left = board.n - k;
        long long kept = left - f - 2;
        kept = min((kept < 1 ? 1 : kept) + 1, static_cast<long long>(left));
        for (int i = warp_index(); i < board.n; i += warps()) {
            if (passed[i]) continue;
            u64* distances = scratch + i * n;
            if (k == 0) {
                sorted_row(board, D + i * ld);
                for (int j = lane_index(); j < board.n; j += 32) distances[j] = board.line[j];
            } else {  // the distance to the row picked last leaves; which of equal ones is the same
                const u64 gone = bits_of(D[i * ld + best]);
                each<AHEAD>(
                    0, left, 32,
                    [&](int first) {
                        const int j = first + lane_index();
                        return Two{distances[min(j, left)], distances[min(j + 1, left)]};
                    },
                    [&](int first, const Two& x) {  // in order: what is less stays where it is
                        const int j = first + lane_index();
                        __syncwarp();
                        if (j < left) distances[j] = board.line[j] = x.own < gone ? x.own : x.next;
                    });
            }
            const double score = sum_of_line(board, kept);
            if (lane_index() == 0) board.scores[i] = score;
        }
        __syncthreads();
        if (warp_index() == 0) {
            int winner = -1;
            for (int i = lane_index(); i < board.n; i += 32)
                if (!passed[i] && (winner < 0 || board.scores[i] < board.scores[winner])) winner = i;
            for (int step = 16; step > 0; step /= 2) {
                const int other = __shfl_xor_sync(FG_WARP, winner, step);
                if (other < 0) continue;
                if (winner < 0 || board.scores[other] < board.scores[winner] ||
                    (board.scores[other] == board.scores[winner] && other < winner))
                    winner = other;
            }
            __syncwarp();
            if (lane_index() == 0) {
                best = winner;
                passed[winner] = 1;
                picks[k] = winner;
            }
        }
        __syncthreads();
    }
}

struct Neighbour {
    u64 distance;
    int id;
};

// Bulyan's picks as in its authors' code: n - 2f - 2 times the mean of ever fewer of the best rows,
// of which the best then leaves, and its distance the scores of the others. `scratch` holds n * n
// doubles and n * n ints.
extern "C" __global__ void __launch_bounds__(512, 1)
bulyan_averaged(const double* D, long long ld, long long n, long long f, double* mixing,
                u64* scratch) {
    FG_DYNAMIC_SHARED(u64, shared);
    __shared__ int best;
    __shared__ unsigned char here[MOST];  // whether a row is left
    const Board board = make_board(shared, D, ld, n, f);
    const int count = static_cast<int>(n - 2 * f - 2), kept = static_cast<int>(n - f - 2);
    if (board.too_many) {
        for (long long k = thread_index(); k < count * n; k += blockDim.x)
            mixing[k] = not_a_number<double>();
        return;
    }
    int* ids = reinterpret_cast<int*>(scratch + n * n);
    for (int i = thread_index(); i < board.n; i += blockDim.x) here[i] = 1;
    for (int i = warp_index(); i < board.n; i += warps()) {  // each row's neighbours, in order
        nearness_of_all(board, D + i * ld, i);
        __syncwarp();
        for (int j = lane_index(); j < board.n; j += 32) {
            const u64 key = board.line[j];
            int rank = -1;  // the row itself comes first and does not count
            for (int other = 0; other < board.n; ++other)
                rank += board.line[other] < key || (board.line[other] == key && other < j);
            if (rank >= 0 && rank < kept) {
                scratch[i * n + rank] = min(key - 1, INFINITE);  // the distance
                ids[i * n + rank] = j;
            }
        }
    }
    __syncthreads();
    for (int k = 0; k < count; ++k) {
        for (int i = warp_index(); i < board.n; i += warps()) {
            __syncwarp();
            each<AHEAD>(
                lane_index(), kept, 32,
                [&](int j) { return Neighbour{scratch[i * n + j], ids[i * n + j]}; },
                [&](int j, const Neighbour& x) { board.line[j] = here[x.id] ? x.distance : 0; });
            const double score = sum_of_line(board, kept);
            if (lane_index() == 0) board.scores[i] = score;
        }
        __syncthreads();
        const int size = kept - k;
        for (int i = thread_index(); i < board.n; i += blockDim.x) {
            int rank = 0;
            for (int j = 0; j < board.n; ++j) rank += here[j] && before(board, j, i);
            const bool taken = here[i] && rank < size;
            mixing[k * n + i] = taken ? 1.0 / size : 0.0;
            if (here[i] && rank == 0) best = i;
        }
        __syncthreads();
        if (thread_index() == 0) here[best] = 0;
        __syncthreads();
    }
}
