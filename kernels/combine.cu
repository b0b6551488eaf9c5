// Weighted sums of rows: out[k] = sum over i of W[k][i] * x_i, in C, row after row in order.
//
// A weight of 0 means that the row is not read into the sum (0 * NaN would be NaN); a NaN in a row
// of W makes that row of the result NaN.
//
// How work maps to threads
//   A thread takes FG_PACK neighbouring columns, 16 bytes where rows are aligned, and FG_K rows of W
//   at a time. A block first lists the rows that have a weight at all, in shared memory, then goes
//   from tile to tile of columns: a row without a weight costs nothing, and the loads of four rows
//   are under way together.
//
// Bytes that must move: (rows with a weight + k) * d * itemsize. Past FG_K rows of W, X is read once
// per FG_K of them, all but the first time from the caches.
//
//   FG_TABLE   as in common.cuh; 1: `stride` is the number of leaves, and `columns` that of units,
//              which are tiles. Where `outs` is null the places of the k results are in the records
//   weights    k x n in float64; null: every weight is `share`

#include "common.cuh"

constexpr int K = FG_K, PACK = FG_PACK, THREADS = 256;
constexpr int LISTED = 512;  // rows that are listed at a time
constexpr int AHEAD = 4;     // rows (or 32 weights each) under way

extern "C" __global__ void __launch_bounds__(THREADS, 2)
combine(const void* rows, long long stride, long long n, const double* weights, double share,
        long long k, void* outs, long long out_stride, long long columns) {
    __shared__ int listed[LISTED];
    __shared__ C listed_weights[K][LISTED];
    __shared__ int count;
    __shared__ int poisoned[K], used[K];
    const int t = thread_index(), lane = lane_index();
#if FG_TABLE
    const long long tiles = columns;
#else
    const long long tiles = (columns + THREADS * PACK - 1) / (THREADS * PACK);
#endif
    for (long long from = 0; from < k; from += K) {
        long long known = -1;  // the first of the rows that are in the list
        if (t < K) poisoned[t] = used[t] = 0;
        for (long long tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
#if FG_TABLE
            const long long size = RECORD + n + (outs ? 0 : k);
            const long long* const leaf = leaf_of(rows, stride, size, tile);
            const long long number = tile - __ldg(leaf);
            const long long* const starts = leaf + RECORD;
            columns = __ldg(leaf + 2);
#else
            const long long number = tile;
            const void* const starts = rows;
#endif
            const long long column = (number * THREADS + t) * PACK;
            C sums[K][PACK];
#pragma unroll
            for (int q = 0; q < K; ++q)
#pragma unroll
                for (int p = 0; p < PACK; ++p) sums[q][p] = C(-0.0);  // x + -0.0 is x, bit for bit
            for (long long first = 0; first < n; first += LISTED) {
                if (first != known) {  // with up to LISTED rows, only before the first tile
                    __syncthreads();
                    if (warp_index() == 0) {
                        int found = 0;
                        const long long end = first + LISTED < n ? first + LISTED : n;
                        for (long long base = first + lane; base - lane < end; base += 32 * AHEAD) {
                            double own[AHEAD][K];
#pragma unroll
                            for (int a = 0; a < AHEAD; ++a)
#pragma unroll
                                for (int q = 0; q < K; ++q) {
                                    const long long i = base + 32 * a;
                                    const bool there = i < end && from + q < k;
                                    own[a][q] = there && !weights ? share : 0.0;
                                    if (there && weights)
                                        own[a][q] = __ldg(weights + (from + q) * n + i);
                                }
#pragma unroll
                            for (int a = 0; a < AHEAD; ++a) {
                                bool any = false;
#pragma unroll
                                for (int q = 0; q < K; ++q) {
                                    if (is_nan(own[a][q])) {
                                        mark(poisoned[q]);
                                        own[a][q] = 0.0;
                                    }
                                    if (static_cast<C>(own[a][q]) == C(0)) continue;
                                    any = true;
                                    mark(used[q]);
                                }
                                const unsigned with = __ballot_sync(FG_WARP, any);
                                if (any) {
                                    const int place = found + __popc(with & ((1u << lane) - 1u));
                                    listed[place] = static_cast<int>(base) + 32 * a;
#pragma unroll
                                    for (int q = 0; q < K; ++q)
                                        listed_weights[q][place] = static_cast<C>(own[a][q]);
                                }
                                found += __popc(with);
                            }
                        }
                        if (lane == 0) count = found;
                    }
                    __syncthreads();
                    known = first;
                }
                if (column >= columns) continue;
                const int rows_listed = count;
                for (int e = 0; e < rows_listed; e += AHEAD) {
                    Pack<PACK> x[AHEAD];
                    const auto place = [&](int a) { return row(starts, stride, listed[e + a]); };
                    load_rows(x, place, rows_listed - e, column, columns);
                    if (PACK == 1) together(x[0].item[0], x[1].item[0], x[2].item[0], x[3].item[0]);
#pragma unroll
                    for (int a = 0; a < AHEAD; ++a) {
                        if (e + a >= rows_listed) continue;
#pragma unroll
                        for (int q = 0; q < K; ++q) {
                            const C w = listed_weights[q][e + a];
                            if (w == C(0)) continue;
#pragma unroll
                            for (int p = 0; p < PACK; ++p)
                                sums[q][p] = multiply_add(w, x[a][p], sums[q][p]);
                        }
                    }
                }
            }
            if (column >= columns) continue;
#pragma unroll
            for (int q = 0; q < K; ++q) {
                if (from + q >= k) continue;
                Pack<PACK> result;
#pragma unroll
                for (int p = 0; p < PACK; ++p)
                    result.item[p] = narrow(poisoned[q] ? not_a_number<C>() : used[q] ? sums[q][p] : C(0));
                T* place = reinterpret_cast<T*>(static_cast<char*>(outs) + (from + q) * out_stride);
#if FG_TABLE
                if (!outs) place = reinterpret_cast<T*>(__ldg(starts + n + from + q));
#endif
                place += column;
                if (column + PACK <= columns) {
                    store_pack(place, result);
                } else {
#pragma unroll
                    for (int p = 0; p < PACK; ++p)
                        if (column + p < columns) place[p] = result.item[p];
                }
            }
        }
        __syncthreads();  // the list and the marks are still being read
    }
}
