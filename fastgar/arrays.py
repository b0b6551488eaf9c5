"""Arrays of any library as rows of numbers in memory, and fresh memory of the same library.

How input is understood
    an array of shape (n, m, ...)        n rows; one of shape (n,) is refused: it may be one row
    a sequence of n arrays               n rows, read where they are (never stacked)
    a sequence of n containers           n structures (mappings, lists, tuples, namedtuples, nested
                                         at will); so a list of n lists of arrays is n structures
    one mapping or one namedtuple        refused: it is one structure, and rows are a sequence of n

Results have the form of one row; a stack of k rows is a (k, ...) array where the input was one
array, and a list of k rows where it was a sequence, so that a stack is valid input again.

What is read in place: any row stride (also negative or zero) as long as each row is C-contiguous,
aligned and in native byte order. Any other layout costs one copy of that array. Rows of a
sequence are judged one by one. What differs by library is in `libraries`.

Leaves that are the same memory in every row (tied weights) are one leaf: they count once in
distances, and the result has one array for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from math import prod
from typing import Any, NamedTuple

import numpy as np

from .dtypes import ITEMSIZE, widened
from .errors import require_name, shown
from .libraries import NUMPY, DLPack, Library, View, as_numpy, library_of

__all__ = ["Block", "Out", "Table", "Vote", "numbers", "reference", "rounded_mean", "table"]

_INTEGERS = {"bool"} | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
_POLICIES = ("median", "first", "selected", "error")
_new = tuple.__new__  # of a NamedTuple: half the time of calling it
_FLOATS = "float16, bfloat16, float32 and float64"


class Block(NamedTuple):
    """Rows of numbers of one dtype: an array, or one leaf of a nested structure."""

    addresses: np.ndarray  # (n,) int64: where the first number of each row is
    columns: int  # numbers per row, one directly after the other
    dtype: str  # "float16" | "bfloat16" | "float32" | "float64"


def numbers(x: Any) -> np.ndarray:
    """Return real numbers (an array of any library, or nested sequences of them) as float64."""
    library = library_of(x)
    if library is None:
        values = np.asarray(x)
    else:
        view = library.view(x)
        if view.device != "cpu":
            x = library.to_host(x)
            view = (library_of(x) or NUMPY).view(x)
        values = widened(as_numpy(view), view.dtype)
    if values.dtype.kind not in "biuf":
        raise TypeError(f"real numbers are needed, got {values.dtype}")
    return values.astype(np.float64)


# ---------------------------------------------------------------------------------------- tables


class Vote(NamedTuple):
    """What makes the integers of a result."""

    rows: tuple[int, ...]  # that were believed
    mean: bool = False  # of these, rounded, instead of their lower median


def rounded_mean(stack: np.ndarray) -> np.ndarray:
    """Return the mean of integers over the first axis, rounded; exact where all are equal."""
    wide = stack.astype(np.int64)
    mean = wide[0] + np.rint((wide - wide[0]).mean(axis=0)).astype(np.int64)
    return np.asarray(mean.astype(stack.dtype))


class _Leaf(NamedTuple):
    """One array of n rows, or the n arrays at one place of n structures."""

    path: str
    library: Library
    like: Any  # an array with the dtype and device of the result
    shape: tuple[int, ...]  # of one row
    dtype: str
    device: str
    block: Block | None  # None: integers
    views: list[View]
    names: tuple[str, ...]  # its path, and those of what is the same memory in every row

    def vote(self, vote: Vote) -> tuple[list[int], str]:
        """Return the rows that make the value of an integer leaf, and how: "first" is as it is."""
        if len(vote.rows) == 1:
            return list(vote.rows), "first"
        if prod(self.shape) <= 1:
            return list(vote.rows), "mean" if vote.mean else "median"
        row = self._majority()
        if row is None:
            raise TypeError(
                f"leaf {shown(self.path)} holds {prod(self.shape)} integers that differ from row "
                "to row, and a mixture of codes has no meaning: turn them into floating numbers "
                "first (dequantise), pass buffers='selected' to take them from the row of most "
                "weight, or leave them out"
            )
        return [row], "first"

    def _majority(self) -> int | None:
        """Return a row that holds what more than half of the rows do, if any."""
        arrays = [self._on_host(view) for view in self.views]
        candidate = lead = 0
        for i, array in enumerate(arrays):  # Boyer and Moore's vote
            if lead == 0:
                candidate = i
            lead += 1 if np.array_equal(array, arrays[candidate]) else -1
        alike = sum(np.array_equal(array, arrays[candidate]) for array in arrays)
        return candidate if 2 * alike > len(arrays) else None

    def _on_host(self, view: View) -> np.ndarray:
        if self.device == "cpu":
            return as_numpy(view)
        array = self.library.to_host(view.owner)
        return as_numpy((library_of(array) or NUMPY).view(array))

    def value(self, rows: list[int], policy: str) -> np.ndarray:
        """Return the value of an integer leaf on the CPU."""
        if policy == "first":
            return as_numpy(self.views[rows[0]])
        stack = np.stack([as_numpy(self.views[row]) for row in rows])
        if policy == "mean":
            return rounded_mean(stack)
        middle = (len(rows) - 1) // 2
        return np.asarray(np.partition(stack, middle, axis=0)[middle])


class Table:
    """Rows of numbers in memory, kept alive, and how to make results like them.

    Attributes
    ----------
    n : int
        Number of rows.
    blocks : tuple of Block
        Where the numbers are: one block for arrays, one per floating leaf of structures.
    device : str
        "cpu", or "cuda:<i>".
    library
        The library of the arrays, for its stream and allocator on a GPU.
    backend
        What `primitives` computes with on a GPU, once it has.
    paths : tuple of str
        Name of each block: "" for arrays, dotted keys and indices ("layer.weight", "0.1") for
        leaves of structures.
    columns : int
        Numbers per row, over all blocks.
    """

    __slots__ = (
        "_buffers", "_build", "_leaves", "_row", "_ties", "backend", "blocks", "columns", "device",
        "library", "n", "paths",
    )  # fmt: skip

    def __init__(
        self,
        n: int,
        leaves: tuple[_Leaf, ...],
        row: Any = None,
        build: Callable[[Iterator[Any]], Any] | None = None,
        buffers: str = "median",
        ties: tuple[int, ...] = (),
    ) -> None:
        self.n = n
        self.device = leaves[0].device if leaves else "cpu"
        self.library = leaves[0].library if leaves else NUMPY
        self.backend: Any = None
        if len(leaves) == 1 and leaves[0].block is not None:  # the fast way for the usual case
            self.blocks: tuple[Block, ...] = (leaves[0].block,)
            self.paths: tuple[str, ...] = (leaves[0].path,)
            self.columns = leaves[0].block.columns
        else:
            floating = [(leaf.block, leaf.path) for leaf in leaves if leaf.block is not None]
            self.blocks = tuple(block for block, _ in floating)
            self.paths = tuple(path for _, path in floating)
            self.columns = sum(block.columns for block in self.blocks)
        self._leaves = leaves
        self._row = row  # row 0 of a sequence, to compare a reference with
        self._build = build  # leaf values -> a row; None: the rows are one array
        self._buffers = buffers
        self._ties = ties  # which leaf is at each place of a structure; (): one at each

    @property
    def one_array(self) -> bool:
        """Whether the rows are those of one array, and not a sequence."""
        return self._build is None

    @property
    def votes(self) -> str | None:
        """What becomes of the integer leaves, if there are any."""
        some = self._build is not None and any(leaf.block is None for leaf in self._leaves)
        return self._buffers if some else None

    def empty(self, count: int | None = None) -> Out:
        """Return fresh memory for one row, or for a stack of `count` rows."""
        if self._build is None:
            leaf = self._leaves[0]
            shape = leaf.shape if count is None else (count, *leaf.shape)
            address, made = leaf.library.make(leaf.like, shape)
            places = [address]
            if count is not None:
                step = self.columns * ITEMSIZE[leaf.dtype]
                places = [address + i * step for i in range(count)]
            return Out((places,), lambda _: leaf.library.finish(made, leaf.like))
        return _empty_structures(self, self._build, count)

    def select(self, predicate: Callable[[str], bool]) -> Table:
        """Return the table of the leaves whose path satisfies `predicate`, for reading only."""
        kept = tuple(
            leaf
            for leaf in self._leaves
            if leaf.block is not None and any(map(predicate, leaf.names))
        )
        if not kept:
            known = ", ".join(map(shown, self.paths[:20]))
            raise ValueError(f"no leaf is selected: the paths of the floating leaves are {known}")
        return _Selection(self.n, kept)


class Out:
    """Memory to write a result to, and the result.

    Attributes
    ----------
    places : tuple of list of int
        For each block of the table, where the first number of each row of the result goes.
    votes : sequence of Vote or None
        For each row of the result, what makes its integers; None: all rows.
    """

    __slots__ = ("_finish", "places", "votes")

    def __init__(
        self, places: tuple[list[int], ...], finish: Callable[[Sequence[Vote] | None], Any]
    ) -> None:
        self.places = places
        self._finish = finish
        self.votes: Sequence[Vote] | None = None

    def value(self) -> Any:
        """Return the result in the library, dtype, device and structure of the input.

        Call it once, after the last write: jax arrays live on in this memory and never change.
        """
        return self._finish(self.votes)


class _Selection(Table):
    """Some leaves of structures: enough for distances, not for results."""

    __slots__ = ()

    def empty(self, count: int | None = None) -> Out:
        raise TypeError("a selection of leaves has no results: make them from the whole table")


def table(X: Any, *, buffers: str = "median") -> Table:
    """Return the rows of `X`, where they are, after checking that they can be aggregated.

    Parameters
    ----------
    X : array or sequence
        An array of shape (n, ...), a sequence of n equal-shaped arrays, or a sequence of n equal
        structures (see the top of this file). float16, bfloat16, float32 or float64; different
        leaves of a structure may have different dtypes. Never written; gradients do not flow.
    buffers : {"median", "first", "selected", "error"}
        What becomes of integer and bool leaves of structures, as in calling a `Rule`.

    Returns
    -------
    Table

    Raises
    ------
    TypeError
        Not an array, a dtype or kind of array that cannot be read, or rows of different libraries
        or dtypes.
    ValueError
        No rows, or rows of different shapes, structures or devices.

    Examples
    --------
    >>> T = table([{"w": np.ones(4), "b": np.ones(1)}] * 3)
    >>> T.n, T.columns, T.paths, T.device
    (3, 5, ('w', 'b'), 'cpu')
    """
    require_name("buffers policy", buffers, _POLICIES)
    library = library_of(X)
    if library is None:
        return _table_of_sequence(X, buffers)
    view = library.view(X)
    shape = view.shape
    if not shape:
        raise ValueError("a 0-d array has no rows: pass an array of shape (n, ...)")
    n = shape[0]
    if n == 0:
        raise ValueError(f"no rows (n = 0): X has shape {tuple(shape)}, pass at least one row")
    dtype = view.dtype
    size = ITEMSIZE.get(dtype)
    if size is None:
        raise _wrong_dtype("X", dtype, library)
    if len(shape) == 1:
        raise ValueError(
            f"X has shape ({n},), one vector and not rows: pass X[:, None] for {n} rows of one "
            "number, or a list of vectors, one per row"
        )
    row = shape[1:]
    columns = row[0] if len(row) == 1 else prod(row)
    step = columns * size
    if columns and (view.strides is not None or view.address % size):
        packed = view.strides is None or _packed(row, view.strides[1:], size // view.unit)
        stride = step if view.strides is None else view.strides[0] * view.unit
        if packed and (view.address | stride) % size == 0:
            step = stride
        else:
            view = library.contiguous(view)
    block = _new(Block, (_addresses(view.address, n, step), columns, dtype))
    leaf = _new(_Leaf, ("", library, X, row, dtype, view.device, block, [view], ("",)))
    return Table(n, (leaf,))


def reference(T: Table, v: Any, name: str = "reference") -> Table:
    """Return `v`, one row in the library, structure, shapes and dtypes of the rows of `T`.

    Parameters
    ----------
    T : Table
        What `v` will be compared with.
    v : array or structure
        Like one row of `T`.
    name : str
        What errors call it.

    Returns
    -------
    Table
        With n == 1.
    """
    if isinstance(T, _Selection):
        raise TypeError("a selection of leaves has no references: select from reference(T, v)")
    if isinstance(v, np.generic):  # NumPy's arithmetic on rows of one number without a shape
        v = np.asarray(v)
    found: _Found = [("", [v])]
    build: _Build | None = None
    if T._build is not None:
        found = []
        build = _walk([T._row, v], "", lambda i: name if i else "a row of X", found)
    if T._ties:
        assert build is not None
        build = _tied(build, T._ties)
        found = [found[T._ties.index(k)] for k in range(len(T._leaves))]
    leaves = tuple(
        _leaf(path, arrays[-1:], lambda i: name, leaf)
        for leaf, (path, arrays) in zip(T._leaves, found, strict=True)
    )
    return Table(1, leaves, v, build, T._buffers, T._ties)


# ------------------------------------------------------------------------- sequences, structures

_Build = Callable[[Iterator[Any]], Any]
_Found = list[tuple[str, list[Any]]]  # path and the arrays that the rows have there
_Label = Callable[[int], str]  # what errors call a row


def _table_of_sequence(X: Any, buffers: str) -> Table:
    if isinstance(X, Mapping) or hasattr(X, "_fields"):
        raise TypeError(
            f"X is one {type(X).__name__}, which is one structure: pass a sequence of n of them, "
            "one per row"
        )
    if not isinstance(X, Sequence) or isinstance(X, (str, bytes)):
        raise _not_an_array("X", X)
    rows = list(X)
    if not rows:
        raise ValueError("no rows (n = 0): X is empty, pass at least one row")
    if _holds_numbers(rows):
        raise TypeError(
            "X is a list of numbers or of lists of them, not of arrays: pass one array, such as "
            "np.asarray(X, np.float32)"
        )
    found: _Found = []
    build = _walk(rows, "", "row {}".format, found)
    leaves = tuple(_leaf(path, arrays, "row {}".format) for path, arrays in found)
    leaves, ties = _untied(leaves)
    if ties:
        build = _tied(build, ties)
    devices = {leaf.device: leaf.path for leaf in leaves}
    if len(devices) > 1:
        where = ", ".join(f"leaf {shown(path)} is on {device}" for device, path in devices.items())
        raise ValueError(f"all leaves must be on one device: {where}")
    libraries = {leaf.library.name: leaf.path for leaf in leaves if leaf.device != "cpu"}
    if len(libraries) > 1:  # each has a stream of its own, which does not wait for that of another
        where = ", ".join(f"leaf {shown(path)} is of {name}" for name, path in libraries.items())
        raise TypeError(f"all leaves on a GPU must be of one library: {where}")
    for leaf in leaves:
        if leaf.block is None and leaf.device != "cpu" and not leaf.library.votes:
            raise TypeError(
                f"leaf {shown(leaf.path)} holds integers of {leaf.library.name} on {leaf.device}, "
                "which are not aggregated there: drop it"
            )
    integers = [leaf.path for leaf in leaves if leaf.block is None]
    if integers and buffers == "error":
        raise TypeError(
            f"leaf {shown(integers[0])} holds integers: pass buffers='median', 'first' or "
            "'selected', or drop it"
        )
    if integers and len(integers) == len(leaves):
        raise TypeError(
            f"no leaf holds floating numbers, by which rows are believed "
            f"({shown(integers[0])} holds {leaves[0].dtype}): convert them first"
        )
    return Table(len(rows), leaves, rows[0], build, buffers, ties)


def _untied(leaves: tuple[_Leaf, ...]) -> tuple[tuple[_Leaf, ...], tuple[int, ...]]:
    """Return one leaf for all that are the same memory, and which of these each leaf is."""
    places: dict[Any, list[int]] = {}
    for k, leaf in enumerate(leaves):
        where = [(view.address, view.strides) for view in leaf.views]
        places.setdefault((leaf.dtype, leaf.shape, *where) if prod(leaf.shape) else k, []).append(k)
    if len(places) == len(leaves):
        return leaves, ()
    groups = list(places.values())
    kept = tuple(
        leaves[group[0]]._replace(names=tuple(leaves[k].path for k in group)) for group in groups
    )
    each = {k: number for number, group in enumerate(groups) for k in group}
    return kept, tuple(each[k] for k in range(len(leaves)))


def _tied(build: _Build, ties: tuple[int, ...]) -> _Build:
    """Return how to build a structure from one value for each of its different leaves."""

    def build_tied(values: Iterator[Any]) -> Any:
        made = list(values)
        return build(iter([made[k] for k in ties]))

    return build_tied


def _holds_numbers(nodes: Any) -> bool:
    """Return whether the first thing in nested lists is a number."""
    while isinstance(nodes, (list, tuple)) and nodes:
        nodes = nodes[0]
    return isinstance(nodes, (int, float, complex, np.generic))


def _walk(nodes: list[Any], path: str, label: _Label, found: _Found) -> _Build:
    """Append the leaves of n equal structures to `found`; return how to build one from values."""
    first = nodes[0]
    family = _family(first)
    if family is None and (first is not None or path == ""):
        found.append((path, nodes))
        return next
    names = _names(first, family)
    for i, node in enumerate(nodes):
        if _family(node) is not family or (family is None and node is not None):
            kinds = ["None" if x is None else f"a {type(x).__name__}" for x in (node, first)]
            raise TypeError(
                f"{_place(path, label(i))} is {kinds[0]}, that of {label(0)} is {kinds[1]}: all "
                "rows must have one structure"
            )
        odd = set(names).symmetric_difference(_names(node, family))
        if odd:
            key = min(odd, key=str)
            has, lacks = (0, i) if key in names else (i, 0)
            raise ValueError(
                f"{_place(path, label(has))} has the entry {shown(key)} and {label(lacks)} has "
                "not: all rows must have one structure"
            )
    keys = names if family is Mapping else range(len(names))
    prefix = f"{path}." if path else ""
    children = [
        (key, _walk([node[key] for node in nodes], f"{prefix}{name}", label, found))
        for key, name in zip(keys, names, strict=True)
    ]

    def build(values: Iterator[Any]) -> Any:
        if first is None:
            return None
        made = [(key, child(values)) for key, child in children]
        if isinstance(first, dict):
            result = copy(first)  # keeps the order and what a state_dict or defaultdict carries
            result.update(made)
            return result
        if family is Mapping:
            return type(first)(dict(made))
        entries = [value for _, value in made]
        return type(first)(*entries) if hasattr(first, "_fields") else type(first)(entries)

    return build


def _family(node: Any) -> type | None:
    """Return the kind of container that `node` is."""
    if isinstance(node, Mapping):
        return Mapping
    if isinstance(node, Sequence) and not isinstance(node, (str, bytes)):
        return Sequence
    return None


def _names(node: Any, family: type | None) -> list[Any]:
    """Return the names of the entries of a container."""
    if family is None:
        return []
    if family is Mapping:
        return list(node)
    return list(getattr(node, "_fields", range(len(node))))


def _leaf(path: str, arrays: list[Any], label: _Label, like: _Leaf | None = None) -> _Leaf:
    """Return the leaf of n arrays that agree with each other (or with the leaf `like`)."""
    first: tuple[Any, ...] | None = None
    other = label(0)
    if like is not None:
        first, other = (like.library, like.dtype, like.device, like.shape), "a row of X"
    views = []
    for i, x in enumerate(arrays):
        library = library_of(x)
        if library is None:
            raise _not_an_array(_place(path, label(i)), x)
        try:
            view = library.view(x)
        except TypeError as error:
            raise TypeError(f"{_place(path, label(i))}: {error}") from error
        if like is not None and library is NUMPY and isinstance(like.library, DLPack):
            library = like.library  # results of unknown libraries are numpy arrays
        this = (library, view.dtype, view.device, view.shape)
        first = first or this
        if this != first:
            raise _differs(_place(path, label(i)), this, other, first)
        views.append(view)
    library, dtype, device, shape = this
    if dtype not in ITEMSIZE and (path == "" or dtype not in _INTEGERS):
        raise _wrong_dtype(_place(path, label(0)), dtype, library)
    size = ITEMSIZE.get(dtype) or np.dtype(dtype).itemsize
    for i, view in enumerate(views):
        packed = view.strides is None or _packed(shape, view.strides, size // view.unit)
        if not packed or view.address % size:
            views[i] = library.contiguous(view)
    block = None
    if dtype in ITEMSIZE:
        addresses = np.array([view.address for view in views], np.int64)
        block = Block(addresses, prod(shape), dtype)
    return _Leaf(path, library, arrays[0], tuple(shape), dtype, device, block, views, (path,))


def _empty_structures(T: Table, build: _Build, count: int | None) -> Out:
    leaves = T._leaves
    made = [
        [leaf.library.make(leaf.like, leaf.shape) for leaf in leaves]
        for _ in range(1 if count is None else count)
    ]
    places = tuple(
        [row[k][0] for row in made] for k, leaf in enumerate(leaves) if leaf.block is not None
    )

    def finish(given: Sequence[Vote] | None) -> Any:
        everyone = Vote((0,) if T._buffers in ("first", "selected") else tuple(range(T.n)))
        votes = [everyone] * len(made) if given is None else given
        for k, leaf in enumerate(leaves):
            if leaf.block is not None:
                continue
            for row, vote in zip(made, votes, strict=True):
                voters, policy = leaf.vote(vote)
                if leaf.device != "cpu":
                    arrays = [leaf.views[voter].owner for voter in voters]
                    leaf.library.vote(arrays, policy, row[k][1])
                    continue
                view = View(row, row[k][0], leaf.shape, None, 1, leaf.dtype, leaf.device)
                as_numpy(view, writable=True)[...] = leaf.value(voters, policy)
        rows = []
        for row in made:
            pairs = zip(leaves, row, strict=True)
            values = [leaf.library.finish(owner, leaf.like) for leaf, (_, owner) in pairs]
            rows.append(build(iter(values)))
        return rows[0] if count is None else rows

    return Out(places, finish)


def _packed(shape: Sequence[int], strides: Sequence[int], step: int) -> bool:
    """Say whether an array is C-contiguous (strides of axes of length 1 mean nothing)."""
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != step:
            return False
        step *= length
    return True


def _addresses(address: int, n: int, step: int) -> np.ndarray:
    if n == 1:
        return np.array((address,), np.int64)
    if step == 0:  # one row n times, or no columns
        return np.full(n, address, np.int64)
    return np.arange(address, address + n * step, step, dtype=np.int64)


# ---------------------------------------------------------------------------------------- errors


def _place(path: str, row: str) -> str:
    return f"leaf {shown(path)} of {row}" if path else row


def _not_an_array(what: str, x: Any) -> TypeError:
    kind = type(x).__name__
    name = "X" if what == "X" else what.split()[0]
    if isinstance(x, (int, float, complex, np.generic)) and what.startswith("leaf"):
        hint = "make it an array, as np.asarray does, or leave it out"
    elif hasattr(x, "to_numpy"):  # a DataFrame or a column of one; only pandas takes a dtype
        dtype = "np.float32" if type(x).__module__.startswith("pandas") else ""
        hint = f"pass {name}.to_numpy({dtype})"
    elif what != "X" and not what.startswith(("row", "leaf")):  # a reference
        hint = "pass one row, like those of X"
    elif hasattr(x, "state_dict"):
        hint = "pass its state_dict()"
    elif isinstance(x, Iterator) or hasattr(x, "keys") or type(x).__name__.startswith("dict_"):
        hint = f"pass a list: list({name})"
    elif hasattr(x, "__array__") and not isinstance(x, np.generic):
        hint = "pass np.asarray of it"
    else:
        hint = "pass an (n, ...) array, or a sequence of n arrays or of n structures of arrays"
    article = "an" if kind[0] in "aeiouAEIOU" else "a"
    return TypeError(f"{what} is {article} {kind}, not an array: {hint}")


def _wrong_dtype(what: str, dtype: str, library: Library) -> TypeError:
    if dtype.startswith("complex"):
        hint = "split it into real and imaginary parts first"
    elif dtype.startswith(("str", "bytes", "object", "datetime", "timedelta", "void")):
        hint = "pass numbers"
    else:
        hint = f"convert it first, for example {library.convert}"
    return TypeError(f"{what} is {dtype}, but only {_FLOATS} are aggregated: {hint}")


def _differs(
    what: str, this: tuple[Any, ...], other: str, first: tuple[Any, ...]
) -> TypeError | ValueError:
    """Return the error for two rows that differ in library, dtype, device or shape."""
    if this[0] is not first[0]:
        library = (this[0].name, first[0].name)
        return TypeError(
            f"{what} is a {library[0]} array, {other} a {library[1]} one: convert all to one"
        )
    if this[1] != first[1]:
        return TypeError(f"{what} is {this[1]}, {other} is {first[1]}: convert all to one dtype")
    if this[2] != first[2]:
        return ValueError(f"{what} is on {this[2]}, {other} on {first[2]}: move all to one device")
    shapes = (tuple(this[3]), tuple(first[3]))
    return ValueError(
        f"{what} has shape {shapes[0]}, {other} has {shapes[1]}: all rows must have one shape"
    )
