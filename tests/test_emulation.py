"""The host's stand-in for a GPU finds what it is there to find."""

from __future__ import annotations

import numpy as np
import pytest
from emulation import EmulationError, build, guarded, needs_compiler

pytestmark = needs_compiler()

KERNELS = """
extern "C" __global__ void missing_barrier(int* out) {
    __shared__ int s[64];
    s[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = s[63 - threadIdx.x];
}
extern "C" __global__ void with_barrier(int* out) {
    __shared__ int s[64];
    s[threadIdx.x] = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = s[63 - threadIdx.x];
}
extern "C" __global__ void barrier_for_some(int* out) {
    if (threadIdx.x < 7) __syncthreads();
}
extern "C" __global__ void two_barriers(int* out) {
    if (threadIdx.x & 1)
        __syncthreads();
    else
        __syncthreads();
}
extern "C" __global__ void past_static_shared(int* out, long long by) {
    __shared__ int s[64];
    s[threadIdx.x + by] = 1;
    out[threadIdx.x] = s[threadIdx.x];
}
extern "C" __global__ void past_dynamic_shared(int* out) {
    FG_DYNAMIC_SHARED(int, s);
    s[threadIdx.x] = 1;
}
extern "C" __global__ void out_of_bounds(int* out, long long by) { out[threadIdx.x + by] = 1; }
extern "C" __global__ void misaligned(int* out) {
    *reinterpret_cast<uint4*>(out + 2) = make_uint4(1, 2, 3, 4);
}
extern "C" __global__ void absent_lane(int* out) {
    if (threadIdx.x < 16) out[0] = __shfl_down_sync(0xffffu, 1, 1);
}
extern "C" __global__ void not_in_the_mask(int* out) { out[0] = __shfl_sync(0xffu, 1, 0); }
extern "C" __global__ void shuffles(int* out) {
    const int t = threadIdx.x;
    int x = __shfl_xor_sync(0xffffffffu, t, 1) + __shfl_up_sync(0xffffffffu, t, 2);
    x += __shfl_sync(0xffffffffu, t, 3, 8) + __shfl_down_sync(0xffffffffu, t, 4, 16);
    if (t & 1) x += __popc(__ballot_sync(0xaaaaaaaau, t > 9)) * 1000;
    __syncwarp();
    out[t] = x + 100000 * __syncthreads_count(t % 3 == 0) + atomicAdd(out + 64, 1) * 0;
}
extern "C" __global__ void turns(int* out) {
    __shared__ int own;
    FG_DYNAMIC_SHARED(int, mine);
    if (threadIdx.x == 0) own = mine[0] = blockIdx.x;
    for (int k = 0; k < 4; ++k) {
        __syncthreads();
        if (own != blockIdx.x || mine[0] != blockIdx.x) out[0] = -1;
        out[1 + atomicAdd(out, 1)] = 1000 * k + 100 * blockIdx.x + threadIdx.x;
    }
}
extern "C" __global__ void extremes(float* out, const float* x, double* wide, const double* y) {
    const int t = threadIdx.x, i = t / 8, j = t % 8;
    out[t] = fminf(x[i], x[j]);
    out[64 + t] = fmaxf(x[i], x[j]);
    wide[t] = fmin(y[i], y[j]);
    wide[64 + t] = fmax(y[i], y[j]);
}
extern "C" __global__ void where(long long* out, long long count) {
    const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    out[block * count + thread] = 1;
}
"""


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    place = tmp_path_factory.mktemp("kernels") / "mistakes.cu"
    place.write_text(KERNELS)
    return build(place)


def ran(kernels, kernel, *args, order="shuffled", shared=0, block=64):
    out = guarded(np.zeros(65, np.int32))
    kernels.launch(kernel, 1, block, [out, *args], shared=shared, order=order)
    return out[:64].tolist()


def test_a_missing_barrier_shows_in_another_order(kernels):
    orders = ("ascending", "descending", "shuffled")
    right = list(range(63, -1, -1))
    assert [ran(kernels, "with_barrier", order=order) for order in orders] == [right] * 3
    assert all(ran(kernels, "missing_barrier", order=order) != right for order in orders)


@pytest.mark.parametrize(
    ("kernel", "args", "complaint"),
    [
        ("barrier_for_some", (), "waits at a barrier .* for ever: thread 7 has returned"),
        ("two_barriers", (), "waits at a barrier .* for ever: thread 1 waits at a barrier"),
        ("past_static_shared", (1,), r"thread \(63, 0, 0\): .*index past an array"),
        ("past_dynamic_shared", (), r"thread \(0, 0, 0\): access at"),
        ("out_of_bounds", (1 + 1,), r"thread \(63, 0, 0\): access .*byte 260 of argument 0"),
        ("out_of_bounds", (-2000,), r"access at"),
        ("misaligned", (), "misaligned"),
        ("absent_lane", (), r"thread \(15, 0, 0\): line .* reads lane 16, which takes no part"),
        ("not_in_the_mask", (), r"thread \(8, 0, 0\): line .*own lane is not in the mask"),
        ("out_of_bounds", (), r"takes \(pi\) and was given \(p\)"),
        ("out_of_bounds", (1.5,), r"takes \(pi\) and was given \(pd\)"),
    ],
)
def test_mistakes_are_reported(kernels, kernel, args, complaint):
    with pytest.raises(EmulationError, match=complaint):
        ran(kernels, kernel, *args, order="ascending")
    assert ran(kernels, "with_barrier")[0] == 63  # and the next launch is sound


def test_warp_operations_mean_what_they_mean(kernels):
    t = np.arange(64)
    lane = t % 32
    want = t ^ 1
    want = want + np.where(lane >= 2, t - 2, t) + (t // 8 * 8 + 3)
    want = want + np.where(lane % 16 < 12, t + 4, t)
    odd = np.where(t < 32, sum(k > 9 for k in range(1, 32, 2)), 16)
    want = want + np.where(t % 2 == 1, 1000 * odd, 0) + 100000 * 22
    for order in ("ascending", "descending", "shuffled"):
        assert ran(kernels, "shuffles", order=order) == want.tolist()


def turns(kernels, seed, order="shuffled", grid=3):
    """(block, part between barriers, thread), in the order in which they came."""
    out = guarded(np.zeros(1 + grid * 4 * 20, np.int32))
    kernels.launch("turns", grid, 20, [out], shared=16, order=order, seed=seed)
    assert out[0] == grid * 4 * 20, "each block has shared memory of its own"
    return [(x // 100 % 10, x // 1000, x % 100) for x in out[1:].tolist()]


def test_blocks_and_threads_take_turns_in_an_order_that_follows_from_the_seed(kernels):
    first = turns(kernels, 1)
    assert turns(kernels, 1) == first != turns(kernels, 2)
    for block in range(3):
        parts = [[t for b, k, t in first if (b, k) == (block, part)] for part in range(4)]
        assert all(sorted(part) == list(range(20)) for part in parts)
        assert len({tuple(part) for part in parts}) == 4, "barriers shuffle the threads again"
    assert [b for b, *_ in first] != sorted(b for b, *_ in first), "blocks run at the same time"
    assert {turns(kernels, seed)[0][0] for seed in range(20)} == {0, 1, 2}
    assert {turns(kernels, seed)[-1][0] for seed in range(20)} == {0, 1, 2}
    inorder = turns(kernels, 1, "ascending")
    assert inorder == sorted(inorder)
    assert [(-b, k, -t) for b, k, t in turns(kernels, 1, "descending")] == sorted(
        (-b, k, -t) for b, k, t in inorder
    )
    many = turns(kernels, 1, grid=9)
    assert sorted(many) == sorted(turns(kernels, 1, "ascending", grid=9))


def test_the_seed_can_be_told_and_is_named(kernels, monkeypatch):
    def named():
        with pytest.raises(EmulationError, match=r"own lane") as caught:
            ran(kernels, "not_in_the_mask")
        return int(str(caught.value).rpartition("(seed ")[2].rstrip(")"))

    monkeypatch.delenv("FASTGAR_EMULATION_SEED", raising=False)
    assert len({named() for _ in range(5)}) == 5, "each launch of a test has another"
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "here")
    first = named()
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "elsewhere")
    assert named() != first
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "here")
    assert named() == first, "it depends on the test, not on those before"
    monkeypatch.setenv("FASTGAR_EMULATION_SEED", "77")
    assert named() == named() == 77


def test_extremes_drop_nan_and_know_the_sign_of_zero(kernels):
    x = np.array([0.0, -0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e-40], np.float32)
    out, wide = guarded(np.zeros(128, np.float32)), guarded(np.zeros(128))
    kernels.launch("extremes", 1, 64, [out, guarded(x), wide, guarded(x.astype(float))])

    def place(number):  # -0 comes before 0
        return number, not np.signbit(number)

    for got in (out, wide.astype(np.float32)):
        for t in range(64):
            pair = [v for v in (x[t // 8], x[t % 8]) if v == v] or [np.float32(np.nan)]
            want = np.array([min(pair, key=place), max(pair, key=place)])
            np.testing.assert_array_equal(got[[t, 64 + t]], want)
            signs = np.signbit(got[[t, 64 + t]]) == np.signbit(want)
            assert signs.all() or np.isnan(want).all()


def test_every_thread_of_every_block_runs_once(kernels):
    for order in ("ascending", "descending", "shuffled"):
        out = guarded(np.zeros(2 * 3 * 4 * 30, np.int64))
        kernels.launch("where", (2, 3, 4), (5, 3, 2), [out, 30], order=order)
        assert (out == 1).all()
    for grid, block, shared in ((1, 1025, 0), (1 << 31, 1, 0), ((1, 65536), 1, 0), (1, 1, 49153)):
        with pytest.raises(EmulationError, match="no GPU takes"):
            kernels.launch("where", grid, block, [out, 30], shared=shared)


def test_what_does_not_compile_says_why(tmp_path):
    place = tmp_path / "wrong.cu"
    place.write_text('extern "C" __global__ void wrong(int* out) { out = missing; }')
    with pytest.raises(EmulationError, match="missing"):
        build(place)
    place.write_text('extern "C" __global__ void wrong(float x) {}')  # Python sends doubles
    with pytest.raises(EmulationError, match="Kind<float>"):
        build(place)
