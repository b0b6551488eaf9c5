// Column statistics that need no order: the mean of the finite values, and the majority of signs.
// A result that is zero is +0.
//
// Bytes that must move: every row once, and the result: (n + 1) * columns * sizeof(T).
//
// One thread has FG_PACK neighbouring columns and walks down the rows, eight reads under way at a
// time; there is nothing to keep but a sum and a count.
//
//   FG_SIGNS  0: the mean of the finite values of a column, NaN where there are none;
//             1: the sign of the sum of signs. NaN has a plus sign; a column with more than
//                `faults` values that are not finite has none: NaN
//   FG_PACK   columns of a thread

#include "common.cuh"

constexpr int K = FG_PACK;
constexpr int AHEAD = 8;  // rows under way

__device__ __forceinline__ void count_in(const Pack<K>& pack, C share, C (&total)[K],
                                         C (&count)[K]) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
        const C x = pack[k];
#if FG_SIGNS
        count[k] += is_finite(x) ? C(0) : C(1);
        total[k] += is_nan(x) || x > 0 ? C(1) : x < 0 ? C(-1) : C(0);
#else
        const bool finite = is_finite(x);
        total[k] = multiply_add(finite ? x : C(0), share, total[k]);
        count[k] += finite ? share : C(0);
#endif
    }
}

extern "C" __global__ void __launch_bounds__(256)
votes(const void* rows, long long stride, long long n, long long faults, void* out,
      long long columns) {
    const Work work = work_of(rows, stride, n, out, columns, 0);
    rows = work.rows;
    out = work.out;
    columns = work.columns;
    const long long step = work.blocks * blockDim.x * K;
    const long long begin = work.block * blockDim.x + thread_index();
    const C share = divide(C(1), static_cast<C>(n));  // so that the sum cannot overflow
    for (long long j = begin * K; j < columns; j += step) {
        C total[K], count[K];
#pragma unroll
        for (int k = 0; k < K; ++k) total[k] = count[k] = 0;
        for (long long i = 0; i < n; i += AHEAD) {
            const int rest = n - i < AHEAD ? static_cast<int>(n - i) : AHEAD;
            Pack<K> packs[AHEAD];
            load_rows(packs, [&](int a) { return row(rows, stride, i + a); }, rest, j, columns);
#pragma unroll
            for (int a = 0; a < AHEAD; ++a)
                if (a < rest) count_in(packs[a], share, total, count);
        }
        Pack<K> results;
#pragma unroll
        for (int k = 0; k < K; ++k) {
#if FG_SIGNS
            C value = total[k] > 0 ? C(1) : total[k] < 0 ? C(-1) : C(0);
            if (count[k] > static_cast<C>(faults)) value = not_a_number<C>();
#else
            const C value = divide(total[k], count[k]);
#endif
            results.item[k] = positive_zero(narrow(value));
        }
        T* target = static_cast<T*>(out) + j;
        if (j + K <= columns) {
            store_pack(target, results);
        } else {
#pragma unroll
            for (int k = 0; k < K; ++k)
                if (j + k < columns) target[k] = results.item[k];
        }
    }
}
