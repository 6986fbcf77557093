"""Who may use CUDA while a graph is captured, and what finalizers do meanwhile."""

from __future__ import annotations

import threading

from mineral_batch.cuda.capture_lock import CaptureLock


def in_another_thread(work: object) -> None:
    thread = threading.Thread(target=work)  # type: ignore[arg-type]
    thread.start()
    thread.join()


def test_a_finalizer_waits_for_the_end_of_an_exclusive_block() -> None:
    lock, done = CaptureLock(), []
    with lock.exclusive():
        lock.run_or_postpone(lambda: done.append(1))
        in_another_thread(lambda: lock.run_or_postpone(lambda: done.append(2)))
        assert done == [], "nothing is freed, and nobody waits"
    assert done == [1, 2]
    with lock.exclusive():
        pass  # nobody is left inside


def test_a_finalizer_in_the_capturing_thread_waits_for_the_end_of_its_capture() -> None:
    """Python's garbage collector runs anywhere, also in the thread that captures in CUDA's thread-local mode."""
    lock, done = CaptureLock(), []
    with lock.shared():
        with lock.capturing():
            lock.run_or_postpone(lambda: done.append("this thread"))
            in_another_thread(lambda: lock.run_or_postpone(lambda: done.append("another thread")))
            assert done == ["another thread"], "which a thread-local capture does not forbid"
        assert done == ["another thread", "this thread"]
    with lock.exclusive():
        pass


def test_an_exclusive_holder_waits_for_sharers_and_keeps_new_ones_out() -> None:
    lock, order = CaptureLock(), []
    inside, leave = threading.Event(), threading.Event()

    def share() -> None:
        with lock.shared():
            inside.set()
            assert leave.wait(120)
            order.append("shared")

    def exclude() -> None:
        with lock.exclusive():
            order.append("exclusive")

    first, second = threading.Thread(target=share), threading.Thread(target=exclude)
    first.start()
    assert inside.wait(120)
    second.start()
    leave.set()
    first.join()
    second.join()
    with lock.shared():
        order.append("shared again")
    assert order == ["shared", "exclusive", "shared again"]
