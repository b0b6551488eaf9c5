// All pairs of points in one pass over X: squared distances, or inner products about a pivot row.
//
//   D[i][j] = sum over columns of (x_i - x_j)^2          sums in C (float32; float64 for float64)
//   G[i][j] = sum of s_i (x_i - x_p) * s_j (x_j - x_p)   with FG_PRODUCTS, all in float64
//
// Differences are formed directly, never from norms: equal rows are exactly 0 apart, and a long
// part that all rows share costs no accuracy.
//
// How work maps to threads
//   A block takes FG_SPAN columns, a fixed number, so that the bits depend on nothing but X. It
//   stages tiles of all rows in shared memory (two: the next comes while one is in use).
//   Rows form FG_GROUPS groups of FG_R: group g is the rows g, g + GROUPS, g + 2 GROUPS, ...
//   A *unit* of work is two groups: all FG_R^2 pairs between them, or ("inside") the pairs within
//   each of the two. So no pair is computed twice, and each number read from shared memory meets
//   FG_R others in registers. Every unit is done by FG_SLOTS threads, each on its share of the
//   columns, 16 bytes at a time; the threads of one unit lie side by side, which with the pitch
//   below keeps shared memory free of bank conflicts.
//   Sums over the slots, in float64 and in order, go to one triangle per block; `add` then adds the
//   triangles in order: four of them to a chunk of 8192 columns, and chunk after chunk to the total
//   (so a vector that is cut at multiples of 8192 columns gives the bits of the whole).
//   Past 128 points (FG_CROSS), a block takes 64 rows against 64 rows: with b = ceil(n / 64), each
//   row is staged b + 1 times. The blocks of one span run side by side, so that X comes from memory
//   about once and otherwise from the L2 cache.
//
// Bytes that must move: n * d * itemsize read once; n^2 / 2 * 8 per 2048 columns written and read
// (n = 20: 2 %, n = 100: 10 %). Two instructions per pair and column: with the instructions that an
// H200 can issue, the arithmetic is the limit from about 30 rows of float32 on, not the memory.
//
// A number that is not finite leaves its mark on every distance of its row, so the fast path does
// not look for it: a block that ends with such a sum reads its columns once more, flags the rows
// (1 on the diagonal), and computes the overflowed pairs of finite rows again, in float64.

#include "common.cuh"

#ifndef FG_PRODUCTS
#define FG_PRODUCTS 0
#endif
#ifndef FG_CROSS
#define FG_CROSS 0
#endif
#ifndef FG_SPAN
#define FG_SPAN 2048  // columns of one partial sum
#endif

constexpr int CHUNK_SPANS = 8192 / FG_SPAN;  // as fastgar.CHUNK has it

__device__ __forceinline__ long long triangle(long long i, long long j) {  // i <= j
    return j * (j + 1) / 2 + i;
}

#ifdef FG_R  // ---------------------------------------------------------------------- the big read

#if FG_PRODUCTS
typedef double A;  // what is staged and summed
#else
typedef C A;
#endif

constexpr int R = FG_R, GROUPS = FG_GROUPS, SLOTS = FG_SLOTS;
constexpr int ACROSS = FG_CROSS ? GROUPS * GROUPS : GROUPS * (GROUPS - 1) / 2;
constexpr int INSIDE = FG_CROSS ? 0 : (GROUPS + 1) / 2;
constexpr int ACROSS_THREADS = (ACROSS * SLOTS + 31) / 32 * 32;  // whole warps of either kind
constexpr int THREADS = ACROSS_THREADS + (INSIDE * SLOTS + 31) / 32 * 32;
constexpr int ROWS = R * GROUPS * (FG_CROSS ? 2 : 1);  // that are staged
constexpr int V = 16 / sizeof(A);                      // numbers of one wide read
constexpr int COLUMNS = FG_COLUMNS;                    // of a tile
constexpr int PITCH = COLUMNS + V * (SLOTS < 8 ? SLOTS : 0);
constexpr int PACK = FG_PACK;                          // numbers of one read of X
constexpr int PACKS = ROWS * COLUMNS / PACK;
constexpr int FETCHES = (PACKS + THREADS - 1) / THREADS;
constexpr int OWN = R * (R - 1) / 2 + (FG_PRODUCTS ? R : 0);  // pairs within one group
constexpr int SUMS = 2 * OWN > R * R ? 2 * OWN : R * R;
constexpr int AHEAD = 4;    // numbers under way, where what is not finite is looked for
constexpr int AT_ONCE = R;  // sums of a thread that are added over the slots together
static_assert(COLUMNS % (SLOTS * V) == 0 && COLUMNS % PACK == 0, "");
// Products, and float64 on Turing, take a few registers more than two blocks leave.
#if FG_PRODUCTS || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800)
constexpr bool CRAMPED = sizeof(A) == 8;
#else
constexpr bool CRAMPED = false;
#endif
constexpr int BLOCKS = THREADS > 256 || CRAMPED ? 1 : THREADS > 128 ? 2 : 3;  // of a multiprocessor
static_assert(FG_SPAN % COLUMNS == 0 && 8192 % FG_SPAN == 0, "");
static_assert(ROWS <= THREADS && THREADS <= 1024 && AT_ONCE * THREADS <= ROWS * PITCH * 2, "");

struct alignas(16) Wide { A item[V]; };
struct Numbers { C x, y; };

// The rows of a block: position in the tile to number of the point; `points` or more is none.
__device__ __forceinline__ int point(int position, int left, int right) {
#if FG_CROSS
    return position < ROWS / 2 ? left + position : right + position - ROWS / 2;
#else
    return position;
#endif
}

struct Source {
    const void* rows;
    long long stride;
    int left, right;
    __device__ __forceinline__ const T* at(int i) const { return row(rows, stride, i); }
};

typedef typename Word<PACK * sizeof(T)>::type Raw;  // one pack, not taken apart yet

// What is read of rows without an address.
__device__ __align__(16) const unsigned char ZEROS[16] = {};

// The packs that a thread brings to the tile, of the rows that `row_of` tells the beginnings of;
// zeros past the end, and for rows without an address. First all addresses, then all loads: none
// waits for another, nor for a test.
template <class RowOf>
__device__ __forceinline__ void fetch(Raw (&packs)[FETCHES], RowOf row_of, long long begin,
                                      long long end) {
    const T* places[FETCHES];
#pragma unroll
    for (int k = 0; k < FETCHES; ++k) {
        const int index = thread_index() + k * THREADS;
        const long long column = begin + index % (COLUMNS / PACK) * PACK;
        const T* const own = index < PACKS ? row_of(index / (COLUMNS / PACK)) : nullptr;
        places[k] = own != nullptr && column < end ? own + column : reinterpret_cast<const T*>(ZEROS);
    }
    if (PACK == 1 || begin + COLUMNS <= end) {
#pragma unroll
        for (int k = 0; k < FETCHES; ++k) packs[k] = __ldg(reinterpret_cast<const Raw*>(places[k]));
    } else {
#pragma unroll
        for (int k = 0; k < FETCHES; ++k) {
            const int index = thread_index() + k * THREADS;
            const long long column = begin + index % (COLUMNS / PACK) * PACK;
            Pack<PACK> pack;
#pragma unroll
            for (int p = 0; p < PACK; ++p) {
                pack.item[p] = column + p < end ? __ldg(places[k] + p) : T(0);
            }
            memcpy(&packs[k], &pack, sizeof pack);
        }
    }
}

// What else a tile of products is made of: the same columns of the pivot, and the scales of rows.
struct Centre {
#if FG_PRODUCTS
    Raw packs[FETCHES];
    double scales[FETCHES];
#endif
};

// Pack number k of a thread, widened, to its place in the tile.
__device__ __forceinline__ void put(A* tile, const Raw& raw, const Centre& centre, int k,
                                    long long begin, long long end) {
    const int index = thread_index() + k * THREADS;
    if (index >= PACKS) return;
    Pack<PACK> pack;
    memcpy(&pack, &raw, sizeof pack);
    const int position = index / (COLUMNS / PACK), offset = index % (COLUMNS / PACK) * PACK;
    alignas(16) A wide[PACK];
#pragma unroll
    for (int p = 0; p < PACK; ++p) wide[p] = pack[p];
#if FG_PRODUCTS
    const double scale = centre.scales[k];
    Pack<PACK> middle;
    memcpy(&middle, &centre.packs[k], sizeof middle);
#pragma unroll
    for (int p = 0; p < PACK; ++p) {
        const bool there = scale != 0.0 && begin + offset + p < end;
        wide[p] = there ? scale * (wide[p] - middle[p]) : 0.0;
    }
#endif
    A* const place = tile + position * PITCH + offset;
    if (PACK % V == 0) {
#pragma unroll
        for (int p = 0; p < PACK; p += V)
            *reinterpret_cast<Wide*>(place + p) = *reinterpret_cast<const Wide*>(wide + p);
    } else {
#pragma unroll
        for (int p = 0; p < PACK; ++p) place[p] = wide[p];
    }
}

__device__ __forceinline__ A grown(A sum, A x, A y) {
#if FG_PRODUCTS
    return multiply_add(x, y, sum);
#else
    const A difference = x - y;
    return multiply_add(difference, difference, sum);
#endif
}

// Adds one tile to the sums of a thread; `first` and `second` are its groups' first rows.
template <bool ACROSS_GROUPS>
__device__ __forceinline__ void accumulate(A (&sums)[SUMS], const A* first, const A* second) {
#pragma unroll 2
    for (int step = 0; step < COLUMNS / (SLOTS * V); ++step) {
        const int offset = step * SLOTS * V;
        Wide x[R], y[R];
#pragma unroll
        for (int r = 0; r < R; ++r) {
            const int place = r * GROUPS * PITCH + offset;
            x[r] = *reinterpret_cast<const Wide*>(first + place);
            y[r] = *reinterpret_cast<const Wide*>(second + place);
        }
#pragma unroll
        for (int v = 0; v < V; ++v) {
            if (ACROSS_GROUPS) {
#pragma unroll
                for (int r = 0; r < R; ++r)
#pragma unroll
                    for (int s = 0; s < R; ++s)
                        sums[r * R + s] = grown(sums[r * R + s], x[r].item[v], y[s].item[v]);
            } else {
                int k = 0;
#pragma unroll
                for (int r = 0; r < R; ++r)
#pragma unroll
                    for (int s = FG_PRODUCTS ? r : r + 1; s < R; ++s) {
                        sums[k] = grown(sums[k], x[r].item[v], x[s].item[v]);
                        sums[OWN + k] = grown(sums[OWN + k], y[r].item[v], y[s].item[v]);
                        ++k;
                    }
            }
        }
    }
}

// The groups of a unit: across, all pairs of two groups; inside, the groups 2u and 2u + 1.
__device__ __forceinline__ void groups_of(int unit, int& first, int& second) {
    if (FG_CROSS) {
        first = unit / GROUPS;
        second = unit % GROUPS;
    } else if (unit < ACROSS) {
        first = 0;
        for (int left = GROUPS - 1; unit >= left; --left) {
            unit -= left;
            ++first;
        }
        second = first + 1 + unit;
    } else {
        first = 2 * (unit - ACROSS);
        second = first + 1;
    }
}

// The positions in the tile of sum number `sum` of a unit; false: of rows that are not there.
__device__ __forceinline__ bool pair_of(int unit, int sum, int& i, int& j) {
    int first, second, r = 0, s = 0;
    groups_of(unit, first, second);
    if (FG_CROSS || unit < ACROSS) {
        if (sum >= R * R) return false;
        r = sum / R;
        s = sum % R;
        if (FG_CROSS) second += R * GROUPS;
    } else {
        if (sum >= 2 * OWN) return false;
        if (sum >= OWN) {
            if (second >= GROUPS) return false;
            first = second;
            sum -= OWN;
        }
        second = first;
        s = FG_PRODUCTS ? 0 : 1;
        for (int left = OWN ? R - (FG_PRODUCTS ? 0 : 1) : 0; sum >= left; --left) {
            sum -= left;
            ++r;
            ++s;
        }
        s += sum;
    }
    i = first + r * GROUPS;
    j = second + s * GROUPS;
    return true;
}

// Adds up span number `first` + blockIdx.x / pairs of row blocks; see the top of this file.
// `counter` is what `add` will count its finished blocks in. With FG_TABLE the units are the spans
// of all leaves, `stride` in number; past the end of a leaf they are of zeros, so that each leaf has
// whole chunks. The last number of a record is then the place of the leaf's first triangle.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
partials(const void* rows, long long stride, long long points, long long columns, long long first,
         double* triangles, int* counter, const double* scales, long long pivot) {
    __shared__ __align__(16) A tiles[2][ROWS * PITCH];
    __shared__ int odd;
    __shared__ unsigned char bad[ROWS];
    __shared__ const T* addresses[ROWS];  // null: the origin, or not there, or of scale 0
    const int t = thread_index();
    Source x = {rows, stride, 0, 0};
    long long span = blockIdx.x;
#if FG_CROSS
    const int blocks = static_cast<int>((points + ROWS / 2 - 1) / (ROWS / 2));
    int pair = static_cast<int>(span % (blocks * (blocks + 1) / 2));
    span /= blocks * (blocks + 1) / 2;
    int a = 0;
    for (int left = blocks; pair >= left; --left) {
        pair -= left;
        ++a;
    }
    x.left = a * (ROWS / 2);
    x.right = (a + pair) * (ROWS / 2);
#endif
    long long place = span;  // of the triangle
    span += first;
#if FG_TABLE
    const long long* const leaf = leaf_of(rows, stride, RECORD + points, span);
    span -= __ldg(leaf);
    place = __ldg(leaf + 3) + span - first;
    columns = __ldg(leaf + 2);
    x.rows = leaf + RECORD;
#endif
    double* const partial = triangles + place * (points * (points + 1) / 2);
    const long long begin = span * FG_SPAN;
    const long long end = begin + FG_SPAN < columns ? begin + FG_SPAN : columns;
    if (t == 0) odd = 0;
    if (t == 0 && blockIdx.x == 0) *counter = 0;

    if (t < ROWS) {
        const int i = point(t, x.left, x.right);
        bool there = i < points;
#if FG_PRODUCTS
        there = there && __ldg(scales + i) != 0.0;
#endif
        addresses[t] = there ? x.at(i) : nullptr;
    }
    __syncthreads();

    const bool across = t < ACROSS_THREADS;
    const int index = across ? t : t - ACROSS_THREADS;
    const int unit = index / SLOTS + (across ? 0 : ACROSS), slot = index % SLOTS;
    const bool works = index / SLOTS < (across ? ACROSS : INSIDE);
    int one = 0, two = 0;
    if (works) groups_of(unit, one, two);
    if (two >= GROUPS) two = one;  // an odd number of groups: the last has no partner
    const int from = one * PITCH + slot * V;
    const int to = (FG_CROSS ? R * GROUPS + two : two) * PITCH + slot * V;

    Centre centre;
#if FG_PRODUCTS
    const T* const middle = x.at(static_cast<int>(pivot));
#pragma unroll
    for (int k = 0; k < FETCHES; ++k) {
        const int position = (t + k * THREADS) / (COLUMNS / PACK);
        const int i = point(position, x.left, x.right);
        centre.scales[k] = position < ROWS && i < points ? __ldg(scales + i) : 0.0;
    }
#endif
    A sums[SUMS];
#pragma unroll
    for (int k = 0; k < SUMS; ++k) sums[k] = A(0);
    Raw coming[FETCHES];
    const auto fetch_tile = [&](long long here) {
        fetch(coming, [&](int position) { return addresses[position]; }, here, end);
#if FG_PRODUCTS
        fetch(centre.packs, [&](int) { return middle; }, here, end);
#endif
    };
    int which = 0;
    fetch_tile(begin);
#pragma unroll
    for (int k = 0; k < FETCHES; ++k) put(tiles[0], coming[k], centre, k, begin, end);
    __syncthreads();
    for (long long here = begin; here < end; here += COLUMNS) {
        const long long next = here + COLUMNS;
        if (next < end) fetch_tile(next);
        const A* const tile = tiles[which];
        if (across)
            accumulate<true>(sums, tile + from, tile + to);
        else
            accumulate<false>(sums, tile + from, tile + to);
        which ^= 1;
        if (next < end) {
#pragma unroll
            for (int k = 0; k < FETCHES; ++k) put(tiles[which], coming[k], centre, k, next, end);
        }
        __syncthreads();  // the next tile is complete, and nobody reads this one any more
    }

    // Add up over the slots, AT_ONCE sums of each thread at a time, through shared memory.
    A* const shared = tiles[0];
#pragma unroll
    for (int k = 0; k < SUMS; k += AT_ONCE) {
        __syncthreads();
#pragma unroll
        for (int e = 0; e < AT_ONCE; ++e)
            if (k + e < SUMS) shared[e * THREADS + t] = sums[k + e];
        __syncthreads();
        for (int place = t; place < (ACROSS + INSIDE) * AT_ONCE; place += THREADS) {
            const int u = place % (ACROSS + INSIDE), e = place / (ACROSS + INSIDE);
            int i, j;
            if (k + e >= SUMS || !pair_of(u, k + e, i, j)) continue;
            i = point(i, x.left, x.right);
            j = point(j, x.left, x.right);
            if (i > j && !FG_CROSS) {
                const int other = i;
                i = j;
                j = other;
            }
            if (i >= points || j >= points || i > j) continue;
            const A* const own =
                shared + e * THREADS + (u < ACROSS ? u * SLOTS : ACROSS_THREADS + (u - ACROSS) * SLOTS);
            double sum = 0.0;
            for (int q = 0; q < SLOTS; ++q) sum += own[q];
            if (FG_PRODUCTS || i < j) partial[triangle(i, j)] = sum;
            if (!FG_PRODUCTS && !is_finite(sum)) mark(odd);
        }
    }
#if !FG_PRODUCTS
    const bool diagonal = x.left == x.right;  // whether this block answers for its rows' flags
    __syncthreads();
    if (!odd && points > 1) {
        if (diagonal && t < ROWS / (FG_CROSS ? 2 : 1) && x.left + t < points)
            partial[triangle(x.left + t, x.left + t)] = 0.0;
        for (int k = THREADS + t; !FG_CROSS && k < points; k += THREADS)
            partial[triangle(k, k)] = 0.0;
        return;
    }
    for (int k = warp_index(); k < ROWS; k += warps()) {
        const T* const place = addresses[k];
        bool found = false;
        if (place != nullptr)
            each<AHEAD>(
                begin + lane_index(), end, 32ll, [&](long long c) { return load(place + c); },
                [&](long long, C number) { found |= !is_finite(number); });
        found = __any_sync(FG_WARP, found) != 0;
        if (lane_index() == 0) bad[k] = found;
    }
    __syncthreads();
    constexpr int WIDTH = FG_CROSS ? ROWS / 2 : ROWS;
    const auto place_of = [&](int k) -> double* {  // of a pair; null: not of this block
        const int i = point(k / WIDTH, x.left, x.right);
        const int j = point(k % WIDTH + (ROWS - WIDTH), x.left, x.right);
        const bool there = i <= j && j < points && (i < j || diagonal);
        return there ? partial + triangle(i, j) : nullptr;
    };
    unsigned char* const again = reinterpret_cast<unsigned char*>(tiles);  // what overflowed
    static_assert(WIDTH * WIDTH <= sizeof tiles, "");
    each<AHEAD>(
        t, WIDTH * WIDTH, THREADS,
        [&](int k) {
            const double* const place = place_of(k);
            return place != nullptr ? *place : 0.0;
        },
        [&](int k, double known) {
            double* const place = place_of(k);
            const int p = k / WIDTH, q = k % WIDTH + (ROWS - WIDTH);
            const bool same = diagonal && p == k % WIDTH, faulty = bad[p] || bad[q];
            if (place != nullptr && (same || faulty)) *place = same && faulty ? 1.0 : 0.0;
            again[k] = place != nullptr && !same && !faulty && !is_finite(known);
        });
    if (sizeof(C) == 8) return;  // float64 stays at +Inf
    __syncthreads();
    for (int k = warp_index(); k < WIDTH * WIDTH; k += warps()) {
        if (!again[k]) continue;
        const T* const u = addresses[k / WIDTH];
        const T* const v = addresses[k % WIDTH + (ROWS - WIDTH)];
        double sum = 0.0;
        each<AHEAD>(
            begin + lane_index(), end, 32ll,
            [&](long long c) {
                return Numbers{u == nullptr ? C(0) : load(u + c), v == nullptr ? C(0) : load(v + c)};
            },
            [&](long long, const Numbers& own) {
                const double difference =
                    static_cast<double>(own.x) - static_cast<double>(own.y);
                sum = multiply_add(difference, difference, sum);
            });
        sum = warp_sum(sum);
        if (lane_index() == 0) *place_of(k) = sum;
    }
#endif
}

#else  // ------------------------------------------------------------------------- the small adding

// Adds `spans` triangles, in order, to the total of `points` x `points`; lower triangle unused.
//
// A block takes 32 entries, one for each lane; its warps fetch a batch of chunks, and the first
// warp adds that up while the others are on their way to the next.
//   begin   0: the total starts from zeros here, else it goes on
//   finish  1: the last block to end makes the matrix symmetric, as squared distances: what
//           concerns a row with a flag is +Inf; 2: symmetric, no more; 0: more is to come
constexpr int WARPS = 8, DEEP = 4;  // chunks that a thread has on their way

struct Entry {
    double value, flag, other_flag;
};

extern "C" __global__ void __launch_bounds__(32 * WARPS, 1)
add(const double* triangles, long long spans, double* total, long long points, long long begin,
    long long finish, int* counter) {
    __shared__ double batch[2][WARPS * DEEP][32];
    __shared__ int last;
    const int t = thread_index(), lane = lane_index(), w = warp_index();
    const long long size = points * (points + 1) / 2;
    const long long entry = 32ll * blockIdx.x + lane;
    const bool real = entry < size;
    long long j = static_cast<long long>((__fsqrt_rn(8.0f * entry + 1.0f) - 1.0f) / 2);
    while (triangle(0, j + 1) <= entry) ++j;  // the root may be rounded either way
    while (triangle(0, j) > entry) --j;
    double* const place = total + (entry - triangle(0, j)) * points + j;
    double sum = real && w == 0 && begin ? *place : 0.0;
    int which = 0;
    for (long long at = 0; at < spans; at += CHUNK_SPANS * WARPS * DEEP) {
        double part[DEEP][CHUNK_SPANS];
#pragma unroll
        for (int k = 0; k < DEEP; ++k)
#pragma unroll
            for (int c = 0; c < CHUNK_SPANS; ++c) {
                const long long span = at + CHUNK_SPANS * (k * WARPS + w) + c;
                part[k][c] = real && span < spans ? triangles[span * size + entry] : 0.0;
            }
#pragma unroll
        for (int k = 0; k < DEEP; ++k) {
            double chunk = part[k][0];
#pragma unroll
            for (int c = 1; c < CHUNK_SPANS; ++c) chunk += part[k][c];
            batch[which][k * WARPS + w][lane] = chunk;
        }
        __syncthreads();
        if (w == 0) {
#pragma unroll
            for (int k = 0; k < WARPS * DEEP; ++k) sum += batch[which][k][lane];
        }
        which ^= 1;
    }
    if (real && w == 0) *place = sum;
    if (!finish) return;
    __syncthreads();
    if (t == 0) {  // the fences speak for the whole block, as barriers lie between
        __threadfence();
        last = atomicAdd(counter, 1) == static_cast<int>(gridDim.x) - 1;
        __threadfence();
    }
    __syncthreads();
    if (!last) return;
    const volatile double* const known = total;
    for (long long p = w; p < points; p += WARPS)
        each<DEEP>(
            p + 1 + lane, points, 32ll,
            [&](long long q) {
                return Entry{known[p * points + q], known[p * points + p], known[q * points + q]};
            },
            [&](long long q, const Entry& x) {
                const bool faulty = finish == 1 && (x.flag != 0.0 || x.other_flag != 0.0);
                const double value = faulty ? infinity<double>() : x.value;
                total[p * points + q] = value;
                total[q * points + p] = value;
            });
    __syncthreads();
    if (finish != 1) return;
    each<DEEP>(
        static_cast<long long>(t), points, 32ll * WARPS,
        [&](long long p) { return known[p * points + p]; },
        [&](long long p, double flag) {
            if (flag != 0.0) total[p * points + p] = infinity<double>();
        });
}

#endif
