"""Imagine candidates in parts, side by side: they share the context and nothing else.

Matrices of small models are so small that torch's own threads spend their time waiting for each other at the end of
every operation. A part of the candidates for each thread instead, from the first imagined frame to the last, needs no
waiting in between; and parts that are not too large stay in the cache of a core. The number of threads is torch's own
(`torch.set_num_threads`, `OMP_NUM_THREADS`); with one there are parts, but no threads.

Small work is done by one thread, whatever torch's number: 96 candidates of nano key points, 8 frames ahead, on a quiet
machine of two cores, take 51 ms on one thread, and 104 ms in two parts, 129 ms undivided where torch uses two that
sleep when they wait (`OMP_WAIT_POLICY=PASSIVE`, as the command line sets it).
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from threading import Barrier

import torch
from torch import Tensor

MOST_TOKENS = 1024
"""New tokens that one part puts through the network at once (nano: 256 candidates): more leave the cache of a core."""

LEAST_TOKENS = 128
"""New tokens of a part for which a thread is worth it."""


SMALL = 2**18
"""New tokens times the network's width below which more than one thread loses more by waiting than it gains."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread, and then as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def split(num_candidates: int, num_new: int, num_threads: int) -> list[slice]:
    """Return the rows of each part, as equal as can be: a multiple of the threads, or one where there is little to do.

    Args:
        num_candidates: S.
        num_new: Tokens that each candidate puts through the network at once.
        num_threads: Threads that work on parts.
    """
    tokens = num_candidates * num_new
    threads = max(1, min(num_threads, tokens // LEAST_TOKENS))
    count = threads * max(1, -(-tokens // (MOST_TOKENS * threads)))
    count = min(count, num_candidates)
    return [slice(num_candidates * i // count, num_candidates * (i + 1) // count) for i in range(count)]


def in_parts(run: Callable[[slice], Tensor], num_candidates: int, num_new: int) -> Tensor:
    """Return what `run` gives for all candidates, part by part and without gradients, one part per thread at a time.

    Args:
        run: Given rows, returns what belongs to those candidates; called in several threads.
        num_candidates: S.
        num_new: As for `split`.
    """
    num_threads = torch.get_num_threads()
    parts = split(num_candidates, num_new, num_threads)

    def alone(rows: slice) -> Tensor:
        with torch.no_grad():  # known to a thread of its own only
            return run(rows)

    is_threaded = num_threads > 1 and len(parts) > 1
    mapped = _workers(num_threads, os.getpid()).map if is_threaded else map
    made = list(mapped(alone, parts))
    return made[0] if len(made) == 1 else torch.cat(made)


@lru_cache(maxsize=1)
def _workers(num_threads: int, process: int) -> ThreadPoolExecutor:
    """Return threads in which torch works alone; a forked process makes its own."""
    del process
    pool = ThreadPoolExecutor(num_threads, "imagine", initializer=_work_alone)
    together = Barrier(num_threads)
    for started in [pool.submit(together.wait) for _ in range(num_threads)]:
        started.result()
    torch.set_num_threads(num_threads)  # what the workers set for themselves is also what later threads begin with
    return pool


def _work_alone() -> None:
    torch.get_num_threads()  # a new thread takes on torch's number at its first question, which must not come later
    torch.set_num_threads(1)
