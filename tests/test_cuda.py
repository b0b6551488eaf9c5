"""The public surface with rows on a GPU: an emulated one, and a real one where there is one.

Both run the same table against the CPU. Column rules, and rules that pick rows, must give the bits
of the CPU; where weights follow from distances they may differ by rounding.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from types import SimpleNamespace

import emulated
import numpy as np
import pytest
from emulation import KERNELS, needs_compiler

import fastgar as fg
from fastgar import arrays, libraries, primitives
from fastgar.cuda import device as devices
from fastgar.cuda.variants import columns_variant

torch = pytest.importorskip("torch")
pytest.importorskip("ml_dtypes")  # whose bfloat16 arrays come back to unknown libraries
emulation = needs_compiler()

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# Rounding of the computing type, and one of the result.
ROUNDING = {"float32": 2e-6, "float64": 1e-12, "bfloat16": 2.0**-7, "float16": 2.0**-9}
OPTIONS = {"centered_clipping": "(tau=2.0)", "clip": "(c=3.0)"}
PIPELINES = [
    "krum(neighbours='n-f-1', squared=False)",
    "multi_krum(m=3)",
    "bulyan(variant='epfl')",
    "median(middle='lower')",
    "nnm | trimmed_mean",
    "nnm | krum",
    "arc | nnm | meamed",
    "bucketing(s=2) | median",
    "bucketing(s=2) | mean",
    "nnm | sign_majority",
]
SPECS = [rule.name + OPTIONS.get(rule.name, "") for rule in fg.list_rules()] + PIPELINES
WITHOUT_WAITING = [  # of float32; what `Rule.waits` says is compared with what happens
    "mean", "nan_mean", "median", "trimmed_mean", "meamed", "phocas", "condense", "sign_majority",
    "krum", "multi_krum", "bulyan", "cge", *PIPELINES[:5],
]  # fmt: skip
# Weights that depend on distances, not only on their order.
WEIGHTED = ("geometric", "rfa", "centered", "caf", "fltrust", "clip", "arc")


def waits(spec, dtype):
    """Whether a rule waits for the distances: nnm may need another read of float64."""
    return spec not in WITHOUT_WAITING or (spec.startswith("nnm") and dtype == "float64")


def sample(n, d, dtype="float32", seed=0):
    X = torch.from_numpy(np.random.default_rng(seed).standard_normal((n, d)) + 1.0)
    return X.to(DTYPES[dtype])


def liars(X):
    X[3, 7] = float("nan")
    X[5] *= 30.0
    X[:, 20:23] = 0.0
    X[1::2, 20] *= -1.0  # mixed signs, in another column all negative
    X[:, 21] *= -1.0
    return X


def aggregate(spec, X, **options):
    if "fltrust" in spec:
        options["reference"] = X[0].clone()
    return fg.rule(spec, 2).at(1)(X, **options)


def same(got, want):
    """Whether all bits are the same, signs of zeros too, where all NaN are one."""
    a, b = (torch.where(x.isnan(), torch.nan, x.double()).view(torch.int64) for x in (got, want))
    return got.dtype == want.dtype and torch.equal(a, b)


def check(spec, dtype, got, want):
    assert got.dtype == want.dtype and got.shape == want.shape
    if not spec.startswith(WEIGHTED):
        assert same(got, want), spec
    else:
        got, want = got.double(), want.double()
        scale = float(want.nan_to_num().abs().max()) if want.numel() else 0.0
        torch.testing.assert_close(
            got, want, rtol=0.0, atol=4 * ROUNDING[dtype] * scale, equal_nan=True
        )


@pytest.fixture
def on_cpu():
    """Aggregates on the CPU, also while torch's tensors count as being elsewhere."""

    def run(spec, X, **options):
        with pytest.MonkeyPatch.context() as real:
            real.setattr(libraries.Torch, "view", VIEW)
            return aggregate(spec, X, **options)

    return run


VIEW, STREAM = libraries.Torch.view, libraries.Torch.stream


@pytest.fixture
def gpu(monkeypatch):
    return emulated.torch_on_gpu(monkeypatch)


# ----------------------------------------------------------------------------- the table of rules


# The dtypes float64 and float16 meet every kernel with the rules alone.
TABLE = [
    (s, d) for s in SPECS for d in DTYPES if s not in PIPELINES or d in ("float32", "bfloat16")
]


@emulation
@pytest.mark.parametrize(("spec", "dtype"), TABLE)
def test_every_rule_gives_what_it_gives_on_the_cpu(gpu, on_cpu, spec, dtype):
    X = liars(sample(11, 301, dtype))
    before = X.clone()
    got = aggregate(spec, X)
    check(spec, dtype, got, on_cpu(spec, X))
    assert torch.equal(X.nan_to_num(nan=1e9), before.nan_to_num(nan=1e9))
    assert gpu.streams == {77}, "everything runs on the caller's stream"
    assert gpu.reads == waits(spec, dtype) == fg.rule(spec, 2).waits(11, dtype)
    assert gpu.waits == 0
    assert gpu.allocations == 0, "scratch comes from the caller's allocator"
    if not waits(spec, dtype):
        assert gpu.writes == 0, "nothing is copied from the host either"


def near_zero(scale, dtype="float32"):
    """Rows that are subnormal, or their squares are, or that are zeros of either sign."""
    X = liars(sample(11, 301))
    X[:, ::7] *= 0.0
    return (X * scale).to(DTYPES[dtype])


@emulation
@pytest.mark.parametrize("scale", [1e-39, 2e-38, 2e-20, 0.0])
@pytest.mark.parametrize("spec", SPECS)
def test_every_rule_keeps_numbers_near_zero(gpu, on_cpu, spec, scale):
    X = near_zero(scale)
    check(spec, "float32", aggregate(spec, X), on_cpu(spec, X))


@emulation
@pytest.mark.parametrize(
    "spec", ["krum", "bulyan", "bulyan(variant='epfl')", "nnm | median", "cge"]
)
@pytest.mark.parametrize("n", [11, 40, 131])
def test_other_numbers_of_rows(gpu, on_cpu, spec, n):
    X = liars(sample(n, 257, seed=n))
    X[9] = X[8]
    check(spec, "float32", aggregate(spec, X), on_cpu(spec, X))


@emulation
def test_more_rows_than_the_gpu_selects_from_are_left_to_the_host(gpu, on_cpu, monkeypatch):
    monkeypatch.setattr("fastgar.cuda.variants.SELECTION_ROWS", 10)
    X = liars(sample(11, 100))
    check("krum", "float32", aggregate("krum", X), on_cpu("krum", X))
    assert gpu.reads == 1


@emulation
def test_nothing_is_remembered_of_each_draw(gpu):
    rule, X = fg.rule("condense", 2), sample(11, 77)
    rule(X)
    known = columns_variant.cache_info().currsize
    for _ in range(3):
        rule(X)
    assert columns_variant.cache_info().currsize == known


@emulation
def test_rows_in_a_list_are_read_where_they_are(gpu, on_cpu):
    rows = [row.clone() for row in sample(11, 77)]
    for spec in ("krum", "trimmed_mean", "nnm | median"):
        check(spec, "float32", fg.rule(spec, 2)(rows), on_cpu(spec, torch.stack(rows)))
    assert "table" in gpu.launches


@emulation
def test_structures_with_several_leaves_and_integers(gpu):
    def state(i):
        rng = np.random.default_rng(i)
        return OrderedDict(
            weight=torch.from_numpy(rng.standard_normal((3, 5)).astype(np.float32)),
            half=torch.from_numpy(rng.standard_normal(9)).bfloat16(),
            steps=torch.tensor(i),
            flag=torch.tensor([i > 2]),
        )

    states = [state(i) for i in range(7)]
    states[6]["half"][2] = float("nan")
    with pytest.MonkeyPatch.context() as real:
        real.setattr(libraries.Torch, "view", VIEW)
        want = [fg.rule(spec, 1)(states) for spec in ("krum", "bulyan", "nnm | median")]
        first = fg.krum(states, f=1, buffers="first")
        part = fg.krum(states, f=1, distance_on=lambda path: path == "weight")
    for spec, expected in zip(("krum", "bulyan", "nnm | median"), want, strict=True):
        got = fg.rule(spec, 1)(states)
        assert list(got) == list(expected)
        for key in got:
            assert got[key].dtype == expected[key].dtype
            assert same(got[key], expected[key]), (spec, key)
    chosen = int(want[0]["steps"])
    assert same(want[0]["weight"], states[chosen]["weight"])
    assert bool(want[0]["flag"]) == bool(states[chosen]["flag"])
    assert int(fg.krum(states, f=1, buffers="first")["steps"]) == int(first["steps"]) == chosen
    got = fg.krum(states, f=1, distance_on=lambda path: path == "weight")
    assert same(got["weight"], part["weight"])


def model(n, leaves, seed=0):
    """States of models: many small leaves, an empty one, another dtype, and one of many columns."""
    rng = np.random.default_rng(seed)

    def leaf(k):
        size = 2 * fg.CHUNK + 5 if k == 3 else 0 if k == 4 else k % 7 + 1
        values = torch.from_numpy(rng.standard_normal(size).astype(np.float32))
        return values.bfloat16() if k % 5 == 2 else values

    return [OrderedDict((f"{k}", leaf(k)) for k in range(leaves)) for _ in range(n)]


LEAVES = [
    "mean", "krum", "multi_krum", "bulyan", "nnm | median", "geometric_median", "nnm | mean", "nnm",
    "bucketing(s=2) | mean", "median", "phocas", "condense", "nan_mean", "sign_majority", "aksel",
    "bulyan(variant='epfl')", "bucketing(s=2) | median",
]  # fmt: skip


@emulation
@pytest.mark.parametrize(
    ("spec", "many"), [*((spec, None) for spec in LEAVES), ("median", 140), ("nnm | meamed", 140)]
)
def test_models_of_many_leaves(gpu, spec, many):
    states = model(11 if many is None else many, 13)
    states[3]["6"][0] = float("inf")
    with pytest.MonkeyPatch.context() as real:
        real.setattr(libraries.Torch, "view", VIEW)
        want = fg.rule(spec, 2).at(1)(states)
    got = fg.rule(spec, 2).at(1)(states)
    pairs = zip(got, want, strict=True) if isinstance(got, list) else [(got, want)]
    for mine, other in pairs:
        for key, value in mine.items():
            check(spec, "bfloat16" if value.dtype is torch.bfloat16 else "float32", value,
                  other[key])  # fmt: skip


@emulation
def test_distances_of_leaves_have_the_bits_of_leaf_after_leaf(gpu):
    """Also where they come in batches, and from any places."""
    states = [
        {k: v for k, v in state.items() if v.dtype is torch.float32} for state in model(6, 11)
    ]
    D = fg.sqdist(states)
    alone = None
    for key in states[0]:
        rows = [state[key] for state in states]
        T = arrays.table(rows)
        alone = primitives.sqdist(T, start=alone)
    assert np.array_equal(D, alone)
    assert gpu.launches.count("partials") == 1 + sum(len(x) > 0 for x in states[0].values())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("fastgar.cuda.backend.PARTIAL_BYTES", 0)
        assert np.array_equal(fg.sqdist(states), D)


@emulation
def test_distances_have_the_same_bits_wherever_the_leaves_lie(gpu):
    """Also where leaves of several dtypes and alignments are launched apart."""
    whole = model(6, 21)
    D = fg.sqdist(whole)

    def moved(x):
        room = torch.zeros(x.numel() + 1, dtype=x.dtype)[1:]
        return room.copy_(x)

    other = [{k: moved(v) if int(k) % 4 == 1 else v for k, v in x.items()} for x in whole]
    assert np.array_equal(fg.sqdist(other), D)
    with pytest.MonkeyPatch.context() as patched:
        size = 8 * 21 * 8  # of two leaves of one chunk
        patched.setattr("fastgar.cuda.backend.PARTIAL_BYTES", size)
        assert np.array_equal(fg.sqdist(other), D)
    total = None
    for key in whole[0]:
        total = primitives.sqdist(arrays.table([x[key] for x in whole]), start=total)
    assert np.array_equal(D, total), "leaf after leaf"


@emulation
def test_it_is_not_up_to_chance_which_kernels_a_list_needs(gpu):
    """Rows of a list may lie one after the other, and the next time not."""
    X = sample(7, 64)
    apart = [row.clone() for row in X]
    assert fg.krum(list(X), f=1).equal(fg.krum(apart, f=1))
    launches = list(gpu.launches)
    assert launches[: len(launches) // 2] == launches[len(launches) // 2 :]
    assert "table" in launches


# Launches of a call on a model, whatever its leaves: two dtypes, rows that are written as a table.
MOST_LAUNCHES = {
    "mean": 6, "median": 6, "nan_mean": 6, "krum": 14, "bulyan": 14, "nnm | median": 14,
    "nnm | krum": 15, "geometric_median": 15,
}  # fmt: skip


@emulation
@pytest.mark.parametrize("spec", MOST_LAUNCHES)
def test_launches_do_not_grow_with_the_leaves(gpu, spec):
    for leaves in (12, 80):
        gpu.launches.clear()
        fg.rule(spec, 1)(model(7, leaves))
        assert len(gpu.launches) <= MOST_LAUNCHES[spec], gpu.launches


@emulation
@pytest.mark.parametrize("spec", ["krum", "trimmed_mean", "nnm | median", "geometric_median"])
def test_streaming(gpu, on_cpu, spec):
    d = 2 * fg.CHUNK + 50
    X = sample(11, d)
    X[2, 100] = float("nan")
    chunks = [X[:, : fg.CHUNK], X[:, fg.CHUNK :]]
    stream = fg.Streaming(spec, n=11, f=2)
    if stream.rule.reads > 1:
        for chunk in chunks:
            stream.observe(chunk)
        assert not stream.again()
    got = torch.cat([stream.apply(chunk) for chunk in chunks])
    assert same(got, fg.rule(spec, 2)(X))
    check(spec, "float32", got, on_cpu(spec, X))


@emulation
def test_a_very_long_row_costs_a_third_read(gpu, on_cpu):
    X = sample(9, 300)
    X[4] *= 1e7
    check("geometric_median", "float32", aggregate("geometric_median", X),
          on_cpu("geometric_median", X))  # fmt: skip
    assert gpu.launches.count("partials") == 2


@emulation
def test_neighbours_of_rows_whose_distances_overflow_are_left_to_the_host(gpu, on_cpu):
    X = sample(9, 300, "float64")
    X[4] *= 1e200
    X[5] *= 1e200
    check("nnm | median", "float64", aggregate("nnm | median", X), on_cpu("nnm | median", X))
    assert gpu.reads == 2  # the distances, and inner products at another scale


# -------------------------------------------------------------------------------- the primitives


@emulation
def test_the_primitives(gpu):
    X = liars(sample(11, 300))
    W = torch.from_numpy(np.random.default_rng(0).random((3, 11)))
    W[:, 3] = 0.0
    with pytest.MonkeyPatch.context() as real:
        real.setattr(libraries.Torch, "view", VIEW)
        D, mixed = fg.sqdist(X, [X[0].clone(), "origin"]), fg.combine(W, X)
        column = fg.columns(X, "median", W=W)
    np.testing.assert_allclose(fg.sqdist(X, [X[0].clone(), "origin"]), D, rtol=1e-5)
    assert same(fg.combine(W, X), mixed)
    assert same(fg.columns(X, "median", W=W), column)


@emulation
@pytest.mark.parametrize("spec", ["krum", "trimmed_mean", "nnm | median", "bulyan"])
def test_inspect(gpu, spec):
    X = liars(sample(11, 64))
    report = fg.inspect(spec, X, f=2)
    with pytest.MonkeyPatch.context() as real:
        real.setattr(libraries.Torch, "view", VIEW)
        want = fg.inspect(spec, X, f=2)
    assert same(report.aggregate, want.aggregate)
    assert report.selected == want.selected and report.faulty == want.faulty
    np.testing.assert_allclose(report.weights, want.weights)


# ---------------------------------------------------------------------------- graphs being captured


@emulation
@pytest.mark.parametrize("spec", SPECS)
def test_what_a_graph_cannot_hold_is_refused_before_any_work(gpu, spec):
    X = liars(sample(11, 301))
    if waits(spec, "float32"):
        gpu.graph = True
        with pytest.raises(RuntimeError, match="a CUDA graph that is being captured cannot wait"):
            aggregate(spec, X)
        assert gpu.launches == [] and gpu.reads == 0
        with pytest.raises(RuntimeError, match="cannot wait"):
            fg.inspect(spec, X[:7], f=1) if "fltrust" not in spec else aggregate(spec, X)
        return
    aggregate(spec, X)  # loads the kernels
    gpu.reads, gpu.writes, gpu.graph = 0, 0, True
    got = aggregate(spec, X)
    assert gpu.reads == gpu.writes == gpu.waits == 0
    gpu.graph = False
    assert same(got, aggregate(spec, X))
    with pytest.raises(RuntimeError, match="cannot wait"):
        gpu.graph = True
        fg.inspect(spec, X, f=2)


@emulation
def test_what_makes_any_rule_wait_is_refused_too(gpu):
    gpu.graph = True
    X = sample(11, 301)
    for options in ({"check": True}, {"distance_on": lambda path: True}):
        with pytest.raises(RuntimeError, match="without distance_on= and check="):
            fg.krum([{"w": row} for row in X], f=2, **options)
    assert gpu.launches == []


@emulation
def test_a_graph_holds_tables_of_any_size_and_no_memory_of_the_host(gpu):
    states = model(40, 80)
    for state in states:
        for key in [key for key, value in state.items() if value.dtype is not torch.float32]:
            del state[key]
    fg.krum(states, f=3)
    assert gpu.writes > 0 and "table" not in gpu.launches, "large tables are copied"
    gpu.writes, gpu.graph = 0, True
    fg.krum(states, f=3)
    assert gpu.writes == 0, "but a graph would hold the address of what was copied"


@emulation
def test_memory_that_a_graph_uses_is_kept(gpu, monkeypatch):
    """Unless the library's allocator sees to it, as torch's does."""
    X = sample(11, 301)
    fg.krum(X, f=2)
    gpu.graph = True
    fg.krum(X, f=2)
    assert gpu.kept == []
    monkeypatch.setattr(libraries.Torch, "knows_graphs", False)
    fg.krum(X, f=2)
    assert len(gpu.kept) >= 2
    count, gpu.graph = len(gpu.kept), False
    fg.krum(X, f=2)
    assert len(gpu.kept) == count


# ------------------------------------------------------------------------------------ bad input


@emulation
@pytest.mark.parametrize(
    "spec", ["krum", "multi_krum", "bulyan", "bulyan(variant='epfl')", "nnm | median", "cge"]
)
def test_too_many_faults_give_nan_or_raise_when_asked_to(gpu, spec):
    X = sample(11, 40)
    X[[1, 4, 6], 3] = float("inf")
    assert torch.isnan(fg.rule(spec, 2)(X)).all()
    assert gpu.reads == 0
    for call in (lambda: fg.rule(spec, 2)(X, check=True), lambda: fg.inspect(spec, X, f=2)):
        with pytest.raises(fg.TooManyFaults) as caught:
            call()
        assert caught.value.rows == (1, 4, 6)
    X[1, 3] = 0.0
    assert torch.equal(fg.rule(spec, 2)(X), fg.rule(spec, 2)(X, check=True))


@emulation
def test_check_is_an_option_of_the_functions_too(gpu):
    X = torch.full((7, 3), float("nan"))
    with pytest.raises(fg.TooManyFaults):
        fg.krum(X, f=1, check=True)
    with pytest.raises(fg.TooManyFaults):  # which waits anyway
        fg.mda(X, f=1)
    assert torch.isnan(fg.krum(X, f=1)).all()
    assert torch.isnan(fg.median(X)).all()


@emulation
@pytest.mark.parametrize("spec", SPECS)
def test_no_columns(gpu, on_cpu, spec):
    for X in (torch.zeros(11, 0), torch.zeros(11, 2, 0)):
        assert aggregate(spec, X).shape == on_cpu(spec, X).shape
    assert gpu.reads == 0


@emulation
def test_one_row(gpu):
    X = sample(1, 33)
    for spec in ("median", "mean", "mda", "geometric_median", "cge"):
        assert torch.equal(fg.rule(spec, 0)(X), X[0])


@emulation
def test_columns_that_do_not_lie_side_by_side_are_copied_once(gpu, on_cpu, monkeypatch):
    X = sample(77, 11).t()
    assert not X.is_contiguous()
    copies = []
    copy = libraries.Torch.contiguous

    def counted(self, view):
        copies.append(view.shape)
        return copy(self, view)

    monkeypatch.setattr(libraries.Torch, "contiguous", counted)
    for spec in ("krum", "median", "nnm | krum"):
        got = aggregate(spec, X)
        assert copies == [(11, 77)], "one copy, however often the rows are read"
        copies.clear()
        check(spec, "float32", got, on_cpu(spec, X.contiguous()))
    halves = sample(11, 100)[:, :50]  # a row stride is taken as it is
    assert arrays.table(halves).blocks[0].addresses[0] == halves.data_ptr()
    check("krum", "float32", aggregate("krum", halves), on_cpu("krum", halves.contiguous()))
    assert copies == []


@emulation
def test_mixed_devices_are_refused_before_any_work(gpu):
    rows = list(sample(5, 4))
    rows[2] = rows[2].clone()
    rows[2].elsewhere = "cuda:1"
    message = "row 2 is on cuda:1, row 0 on cuda:0: move all to one device"
    with pytest.raises(ValueError, match=message):
        fg.krum(rows, f=1)
    rows[2].elsewhere = "cpu"
    with pytest.raises(ValueError, match="row 2 is on cpu"):
        fg.krum(rows, f=1)
    with pytest.raises(ValueError, match="start is on cpu"):
        fg.centered_clipping(sample(5, 4), tau=1.0, start=rows[2])
    assert gpu.launches == []


@emulation
def test_mixed_libraries_are_refused_before_any_work(gpu):
    """The kernels of a call run on one stream, and libraries do not wait for each other's."""
    states = [{"a": row, "b": emulated.Away(row.numpy())} for row in sample(7, 5)]
    message = "must be of one library: leaf 'a' is of torch, leaf 'b' is of emulated"
    with pytest.raises(TypeError, match=message):
        fg.krum(states, f=1)
    assert gpu.launches == []


@emulation
def test_each_device_is_used_for_its_own_data(gpu, monkeypatch):
    other = emulated.connect(monkeypatch, "cuda:1")
    X = sample(7, 40)
    X.elsewhere = "cuda:1"
    fg.krum(X, f=1)
    assert other.launches and not gpu.launches


@emulation
def test_the_current_stream_of_another_device_is_not_used(gpu, monkeypatch):
    """A stream of another device may be the current one: that of the data's device counts."""
    other = emulated.connect(monkeypatch, "cuda:1")
    streams = {"cuda:0": 70, "cuda:1": 71}

    def current_stream(device=None):
        return SimpleNamespace(cuda_stream=streams[device or "cuda:1"])

    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    monkeypatch.setattr(libraries.Torch, "stream", STREAM)
    X = sample(7, 40)
    fg.krum(X, f=1)
    X.elsewhere = "cuda:1"
    fg.krum(X, f=1)
    assert gpu.streams == {70} and other.streams == {71}


def test_cupys_current_stream_is_that_of_the_datas_device():
    def current(index):
        return SimpleNamespace(ptr=60 + index)

    cupy = SimpleNamespace(cuda=SimpleNamespace(get_current_stream=current))
    assert libraries.Cupy(cupy).stream("cuda:3") == 63


@emulation
def test_jax_arrays_are_read_on_the_default_stream(monkeypatch):
    gpu = emulated.connect(monkeypatch)
    imported = []
    jax = SimpleNamespace(
        core=SimpleNamespace(Tracer=()), enable_x64=None,
        dlpack=SimpleNamespace(from_dlpack=lambda made: imported.append(gpu.waits) or made),
    )  # fmt: skip
    X = emulated.Away(sample(7, 40).numpy())  # which wants to be told the default stream
    X.devices = lambda: [SimpleNamespace(platform="gpu")]
    library = libraries.Jax(jax)
    view = library.view(X)
    assert view.device == "cuda:0" and view.address == X.values.ctypes.data
    _, made = library.make(X, (40,))
    assert library.stream("cuda:0") == 0 and gpu.waits == 0
    assert library.finish(made, X) is made and imported == [1], "waits, then hands it over"
    X.devices = lambda: [SimpleNamespace(platform="rocm")]
    with pytest.raises(TypeError, match="on the CPU, or on one NVIDIA GPU"):
        library.view(X)


@emulation
def test_arrays_of_unknown_libraries(monkeypatch):
    gpu = emulated.connect(monkeypatch)
    X = sample(11, 300).numpy()
    for spec in ("krum", "median", "geometric_median"):
        got = fg.rule(spec, 2)(emulated.Away(X))
        assert isinstance(got, emulated.Away)
        check(spec, "float32", torch.from_numpy(got.values), aggregate(spec, torch.from_numpy(X)))
    rows = [emulated.Away(row) for row in X]
    gpu.waits = 0
    np.testing.assert_array_equal(fg.krum(rows, f=2).values, fg.krum(X, f=2))
    assert gpu.streams == {0}
    assert gpu.waits == 1, "the library may give the rows' memory away when the call is over"
    with pytest.raises(TypeError, match="needed on the CPU"):
        fg.combine(emulated.Away(np.ones(11)), X)
    states = [{"w": row, "steps": emulated.Away(np.zeros(1, np.int64))} for row in rows]
    gpu.launches.clear()
    with pytest.raises(TypeError, match="'steps' holds integers of emulated on cuda:0"):
        fg.krum(states, f=2)
    assert not gpu.launches


def test_nothing_of_cuda_is_imported_for_rows_on_the_cpu():
    import subprocess

    code = (
        "import sys, numpy as np, fastgar as fg; fg.krum(np.ones((7, 3)), f=1);"
        "bad = [m for m in sys.modules if m.startswith(('cupy', 'fastgar.cuda'))];"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_text_of_every_kernel_is_whole():
    headers = [path.read_text().partition("\n")[0] for path in KERNELS.glob("*.cuh")]
    for path in KERNELS.glob("*.cu"):
        text = devices.source(path.name, [("FG_DTYPE", 2)])
        assert text.startswith("#define FG_DTYPE 2\n")
        assert "#include" not in text and "#pragma once" not in text
        whole = {"columns.cu": 2, "tiles.cu": 2, "table.cu": 0}.get(path.name, 1)
        assert sorted(map(text.count, headers)) == [0, 0, 1, 1][whole : whole + 2]  # each once


# ----------------------------------------------------------------------------------- a real GPU

real = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")


@real
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", SPECS)
def test_gpu_every_rule_gives_what_it_gives_on_the_cpu(spec, dtype):
    for n, d in [(11, 301), (11, 100_000), (40, 20_000)]:
        X = liars(sample(n, d, dtype))
        got = aggregate(spec, X.cuda())
        assert got.is_cuda
        check(spec, dtype, got.cpu(), aggregate(spec, X))


@real
@pytest.mark.parametrize("spec", WITHOUT_WAITING)
def test_gpu_nothing_waits(spec):
    X = liars(sample(11, 1000)).cuda()
    want = aggregate(spec, X)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = aggregate(spec, X)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(got.nan_to_num(nan=1e9), want.nan_to_num(nan=1e9))


@real
@pytest.mark.parametrize("spec", [s for s in WITHOUT_WAITING if s != "condense"])
@pytest.mark.parametrize("as_list", [False, True])
def test_gpu_graph_capture(spec, as_list):
    X = sample(11, 5000).cuda()
    rows = [row.clone() for row in X] if as_list else X
    rule = fg.rule(spec, 2)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        rule(rows)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = rule(rows)
    for seed in (5, 6):
        fresh = liars(sample(11, 5000, seed=seed)).cuda()
        for i in range(11):
            rows[i].copy_(fresh[i])
        graph.replay()
        torch.cuda.synchronize()
        want = rule(rows)
        assert torch.equal(out.nan_to_num(nan=1e9), want.nan_to_num(nan=1e9))


@real
def test_gpu_the_callers_stream_is_used():
    X = torch.zeros(11, 1 << 20, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)  # on another stream the kernels would see zeros
        X += torch.arange(11.0, device="cuda")[:, None]
        out = fg.median(X)
        krum = fg.krum(X, f=2)
    side.synchronize()
    assert (out == 5.0).all() and torch.isfinite(krum).all() and (krum != 0).any()


@real
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_gpu_the_data_says_which_device():
    X = sample(11, 1000).to("cuda:1")
    assert torch.cuda.current_device() == 0
    for spec in ("krum", "median", "geometric_median"):
        got = aggregate(spec, X)
        assert got.device == X.device
        check(spec, "float32", got.cpu(), aggregate(spec, X.cpu()))
    with torch.cuda.stream(torch.cuda.Stream("cuda:1")):  # of another device than the data's
        here = X.to("cuda:0")
        check("krum", "float32", fg.krum(here, f=2).cpu(), aggregate("krum", X.cpu()))


@real
def test_gpu_cupy_arrays():
    cupy = pytest.importorskip("cupy")
    X = sample(11, 1001).numpy()
    for spec in ("krum", "median", "geometric_median"):
        got = fg.rule(spec, 2)(cupy.asarray(X))
        assert isinstance(got, cupy.ndarray)
        check(spec, "float32", torch.from_numpy(got.get()), aggregate(spec, torch.from_numpy(X)))


@real
def test_gpu_more_than_two_to_the_thirty_one_numbers():
    n, d = 11, 200_000_003
    if torch.cuda.mem_get_info()[0] < n * d * 2 + (2 << 30):
        pytest.skip("too little memory")
    X = torch.zeros(n, d, dtype=torch.bfloat16, device="cuda")
    X[:, -1] = torch.arange(float(n), device="cuda")
    assert float(fg.median(X)[-1]) == 5.0
    D = fg.sqdist(X)
    assert D[0, 10] == 100.0 and D[4, 6] == 4.0
