import threading
import time

import pytest

from tlexport.runtimes._turns import Turns


def test_who_waits_longest_is_next():
    """Three threads take turns, although each asks again the moment it has given back."""
    turns, order, lock = Turns(["the one"]), [], threading.Lock()
    together = threading.Barrier(3)

    def ask(name):
        together.wait()
        for _ in range(20):
            with turns.one():
                with lock:
                    order.append(name)
                time.sleep(0.001)

    threads = [threading.Thread(target=ask, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    settled = order[6:-6]
    assert len(order) == 60
    assert all(settled[i] != settled[i + 1] for i in range(len(settled) - 1))


def test_each_thing_is_with_one_thread_and_comes_back_after_an_error():
    turns, held, wrong = Turns([1, 2]), set(), []

    def ask():
        for _ in range(50):
            with turns.one() as thing:
                if thing in held:
                    wrong.append(thing)
                held.add(thing)
                time.sleep(0.0002)
                held.discard(thing)

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), turns.one():
            raise ZeroDivisionError
    with turns.one() as first, turns.one() as second:
        assert {first, second} == {1, 2}
