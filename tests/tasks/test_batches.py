from __future__ import annotations

from tlexport.tasks import Example, batches


def sizes(wanted: list[int], most: int, budget: int = 0) -> list[list[int]]:
    examples = [Example(source=None, label=0, digest=str(n), size=n) for n in wanted]
    return [[example.size for example in batch] for batch in batches(examples, most, budget)]


def test_a_batch_holds_at_most_so_many():
    assert sizes([0] * 5, 2) == [[0, 0], [0, 0], [0]]
    assert sizes([], 2) == []
    assert sizes([9], 1) == [[9]]


def test_a_batch_costs_at_most_the_budget_padding_included():
    assert sizes([1, 2, 3, 4, 5], 8, 9) == [[1, 2, 3], [4], [5]]
    assert sizes([5, 1, 1], 8, 10) == [[5, 1], [1]]
    assert sizes([20, 30], 8, 10) == [[20], [30]]
