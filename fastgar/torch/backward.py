"""What is to be done at the end of the backward pass that is underway."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.autograd import Variable

__all__ = ["after_backward", "current_backward", "postponed_errors", "raise_after_backward"]


def current_backward() -> int:
    """Return a number that stands for the backward pass that is underway."""
    number: int = torch._C._current_graph_task_id()
    return number


def after_backward(call: Callable[[], None]) -> None:
    """Call it in the same ``backward()``, after all gradients and what was queued before."""
    Variable._execution_engine.queue_callback(call)


def raise_after_backward(error: Exception) -> None:
    """Raise out of ``backward()`` once DDP or FSDP has finished its own work.

    So the next forward pass finds it ready.
    """

    def complain() -> None:
        raise error

    # DDP queues its last work after the hook returns: what is queued from here comes before it,
    # and what is queued from there after it.
    after_backward(lambda: after_backward(complain))


@contextmanager
def postponed_errors() -> Iterator[None]:
    """Raise what a user's callback raises where it does no harm: gradients are complete then."""
    try:
        yield
    except Exception as error:
        raise_after_backward(error)
