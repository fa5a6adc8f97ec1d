"""Sums of small numbers, and the working of a sum step by step, right or with mistakes."""

from __future__ import annotations

from random import Random

OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
LARGEST = 99  # largest number in tasks and demonstrations; a task may have a lower limit
STEP_END = "."

Expression = tuple[str, ...]  # alternating numbers and operations: ("3", "+", "4", "*", "2")


def drawn_sum(rng: Random, numbers: int) -> Expression:
    """A random sum of 3 to `numbers` numbers, each from 1 to 9."""
    words = [str(rng.randint(1, 9))]
    for _ in range(rng.randint(3, numbers) - 1):
        words += [rng.choice(list(OPERATIONS)), str(rng.randint(1, 9))]
    return tuple(words)


def result(a: str, operation: str, b: str) -> int:
    return OPERATIONS[operation](int(a), int(b))


def next_place(expression: Expression) -> int:
    """The index of the operation that comes next: products before sums, from left to right."""
    return expression.index("*") if "*" in expression else 1


def operation_at(expression: Expression, place: int) -> Expression:
    """The operation at index `place`, with the number on each side."""
    return expression[place - 1 : place + 2]


def reduced(expression: Expression, place: int, number: int) -> Expression:
    """Replace the operation at `place`, with the number on each side, by `number`."""
    return (*expression[: place - 1], str(number), *expression[place + 2 :])


def results_of(expression: Expression) -> list[int]:
    """The result of each step of the right working; empty for a single number."""
    results: list[int] = []
    while len(expression) > 1:
        place = next_place(expression)
        results.append(result(*operation_at(expression, place)))
        expression = reduced(expression, place, results[-1])
    return results


def value_of(expression: Expression) -> int:
    return results_of(expression)[-1] if len(expression) > 1 else int(expression[0])


def stays_small(expression: Expression, largest: int = LARGEST) -> bool:
    """Whether all numbers, including intermediate results, are from 0 to `largest`."""
    return all(0 <= number <= largest for number in [*results_of(expression), *map(int, expression[::2])])


def working(expression: Expression, wrong: float = 0.0, rng: Random | None = None, largest: int = LARGEST) -> list[str]:
    """The working as one sentence per step. A share `wrong` of the steps, chosen with `rng`, gets an error."""
    steps = []
    while len(expression) > 1:
        place = next_place(expression)
        number = result(*operation_at(expression, place))
        if rng is not None and rng.random() < wrong:
            place, number = rng.choice(mistakes(expression, largest) or [(place, number)])
        steps.append(f"{' '.join(operation_at(expression, place))} = {number} {STEP_END}")
        expression = reduced(expression, place, number)
    return steps


def mistakes(expression: Expression, largest: int = LARGEST) -> list[tuple[int, int]]:
    """Possible wrong next steps, as (place, number): the result is off by up to 3, or the operation comes too early."""
    first, value = next_place(expression), value_of(expression)
    right = result(*operation_at(expression, first))
    off = [(first, right + by) for by in (-3, -2, -1, 1, 2, 3)]
    early = [(at, result(*operation_at(expression, at))) for at in range(1, len(expression), 2) if at != first]
    return [
        (place, number)
        for place, number in off + early
        if stays_small(left := reduced(expression, place, number), largest) and value_of(left) != value
    ]
