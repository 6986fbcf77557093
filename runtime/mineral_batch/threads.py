"""Work spread over threads, with a bound on how much of it waits."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 4


def bounded_map(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, name: str = "worker"
) -> Iterator[Result]:
    """Map like `map`, in the order of `items`, in several threads.

    `concurrent.futures.Executor.map` reads all of its items first; this reads no more than four per thread ahead, so
    that a million images need little memory. An exception ends it, and work that has not begun is canceled.

    Args:
        function: called in the threads.
        items: read in the caller's thread.
        threads: how many run at once.
        name: prefix of the threads' names.
    """
    source = iter(items)
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix=name) as pool:
        try:
            while True:
                waiting.extend(pool.submit(function, item) for item in islice(source, _AHEAD * threads - len(waiting)))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
