"""Data sets of openml.org, through scikit-learn's cache folder, as compact arrays of bytes.

scikit-learn keeps in ``<home>/openml`` the files that it fetched. It reads them with a parser in
plain Python, which takes a minute for CIFAR-10 and holds the set twice in float64 (3 GB). So the
first load also writes the samples as bytes, a file of 184 MB, into ``<home>/fastgar``; later loads
read that one, in a second or two. Either folder can be given to a machine without a network.
"""

from __future__ import annotations

import os
import socket
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from gzip import BadGzipFile
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
from numpy.typing import NDArray

__all__ = ["home", "read"]

Samples = tuple[NDArray[np.uint8], NDArray[np.int64]]

SECONDS = 20  # without a word from openml.org; a firewall that swallows packets would take minutes


def home(folder: str | Path | None) -> Path:
    """Return the folder that holds the caches: scikit-learn's own (or SCIKIT_LEARN_DATA) if None.

    Raises
    ------
    ValueError
        If the folder that was named does not exist, or scikit-learn's cannot be made.
    """
    from sklearn.datasets import get_data_home

    if folder is None:
        try:
            return Path(get_data_home())
        except OSError as error:
            raise ValueError(
                f"cannot make scikit-learn's data folder ({error}): name another one, or set "
                "SCIKIT_LEARN_DATA"
            ) from error
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ValueError(f"there is no data folder {path}: make it, or name the one that holds it")
    return path


def read(name: str, number: int, home: Path, *, width: int, counts: Sequence[int]) -> Samples:
    """Return the samples of a data set as bytes, one per row, and their classes from 0.

    Nominal columns, of tables, become one column of 0 and 1 per value.

    Parameters
    ----------
    name : str
        What the set is called here, for the messages.
    number : int
        The set's id at openml.org.
    home : Path
        The folder of the caches.
    width : int
        How many values a sample must have.
    counts : sequence of int
        How many samples each class must have.

    Raises
    ------
    ValueError
        If the set is not in the folder and cannot be fetched, or what is there cannot be read or
        is not what it must be.
    """
    compact = home / "fastgar" / f"openml-{number}.npz"
    if compact.exists():
        samples = _unpack(name, compact)
        _require(name, compact, samples, width, counts)
        return samples
    bunch = _fetch(name, number, home)
    samples = _bytes(name, bunch, home), _classes(bunch.target)
    _require(name, home / "openml", samples, width, counts)
    # A folder that cannot be written, or is full, costs time at the next load and nothing else.
    with suppress(OSError):
        _pack(samples, compact)
    return samples


def _fetch(name: str, number: int, home: Path) -> Any:
    """Return what scikit-learn makes of the set, with sentences for all that can go wrong."""
    from sklearn.datasets import fetch_openml

    with warnings.catch_warnings(record=True) as said, _patience():
        warnings.simplefilter("always")
        try:
            return fetch_openml(
                data_id=number, data_home=str(home), as_frame=False, parser="liac-arff"
            )
        except MemoryError:
            raise
        except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
            reason = getattr(error, "reason", None) or error
            raise ValueError(_unreachable(name, home, reason, said)) from error
        except OSError as error:
            if isinstance(error, BadGzipFile):
                raise ValueError(_damaged(name, number, home, error)) from error
            raise ValueError(
                f"cannot load {name}: {error}; {home} must be a folder that can be read and "
                "written, with room for the set: name another"
            ) from error
        except Exception as error:  # whatever a parser stumbles over in a damaged file
            raise ValueError(_damaged(name, number, home, error)) from error


def _unreachable(name: str, home: Path, reason: object, said: list[warnings.WarningMessage]) -> str:
    """Return the sentence for a set that has to be fetched and cannot be."""
    # scikit-learn removes a file that it cannot read before it tries to fetch it again.
    removed = [text for text in (str(w.message) for w in said) if "Invalid cache" in text]
    state = "it is not there"
    if removed:
        state = f"{removed[0].partition(' to ')[2]} was damaged and is removed"
    return (
        f"cannot load {name} from {home}: {state}, and openml.org does not give it ({reason}); on "
        'a machine with a network, run mkdir data && python -c "from fastgar.train.data import '
        f"load; load('{name}', 'data')\", and copy what is then in data to {home}"
    )


def _damaged(name: str, number: int, home: Path, error: Exception) -> str:
    """Return the sentence for files that are there and cannot be understood."""
    return (
        f"cannot load {name}: the files of OpenML data set {number} in {home / 'openml'} are "
        f"damaged ({type(error).__name__}: {error}); fetch them again into an empty folder"
    )


@contextmanager
def _patience() -> Iterator[None]:
    """Limit how long scikit-learn, which sets no limit, waits for an answer."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS if before is None else before)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _bytes(name: str, bunch: Any, home: Path) -> NDArray[np.uint8]:
    """Return the features as bytes, nominal ones as one column of 0 and 1 per value."""
    features: NDArray[np.float64] = bunch.data
    if bunch.categories:
        columns = []
        for column, feature in zip(features.T, bunch.feature_names, strict=True):
            values = bunch.categories[feature]
            for value in sorted(values):
                columns.append(column == values.index(value))
        return np.stack(columns, axis=1).astype(np.uint8)
    with np.errstate(invalid="ignore"):
        small = features.astype(np.uint8)
    if not np.array_equal(small, features):
        raise ValueError(
            f"cannot load {name}: its file in {home / 'openml'} holds values that are no integers "
            "from 0 to 255, so it is another set; fetch it again into an empty folder"
        )
    return small


def _classes(target: NDArray[Any]) -> NDArray[np.int64]:
    """Return the labels, which may be strings, as numbers from 0 in the order of their values."""
    with suppress(ValueError):  # "10" comes after "9"; names stay in alphabetical order
        target = target.astype(np.float64)
    return np.unique(target, return_inverse=True)[1].astype(np.int64)


def _require(name: str, path: Path, samples: Samples, width: int, counts: Sequence[int]) -> None:
    """Raise a ValueError unless the samples are as many, as wide and of such classes as meant."""
    x, y = samples
    found = np.bincount(y)
    sizes = [
        ("samples", len(x), sum(counts)),
        ("values per sample", x.shape[1], width),
        ("classes", len(found), len(counts)),
    ]
    for k, count in enumerate(found[: len(counts)]):
        sizes.append((f"samples of class {k}", int(count), counts[k]))
    for what, is_, meant in sizes:
        if is_ != meant:
            raise ValueError(
                f"cannot load {name}: {path} holds {is_:,} {what} of it where {meant:,} are meant, "
                "so it is cut short or another set; fetch it again into an empty folder"
            )


def _unpack(name: str, path: Path) -> Samples:
    try:
        with np.load(path) as arrays:
            x, y = arrays["x"], arrays["y"]
        if x.dtype != np.uint8 or y.dtype != np.int64 or x.ndim != 2 or y.shape != x.shape[:1]:
            raise ValueError("not the arrays that should be there")
    except Exception as error:  # of many kinds, from the zip file to the header of an array
        raise ValueError(
            f"cannot load {name}: {path} is damaged ({error}); remove it, and it is made again "
            f"from the files in {path.parent.parent / 'openml'}, or from openml.org"
        ) from error
    return x, y


def _pack(samples: Samples, path: Path) -> None:
    """Write the compact file; other processes see all of it or nothing."""
    path.parent.mkdir(exist_ok=True)
    handle, part = tempfile.mkstemp(suffix=".npz", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, x=samples[0], y=samples[1])
        os.chmod(part, 0o644)  # mkstemp's are for their owner alone; this one may be shared
        os.replace(part, path)
    finally:
        Path(part).unlink(missing_ok=True)
