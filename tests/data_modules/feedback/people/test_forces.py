"""Expected actions for a pendulum, written by people as text."""

import pytest

from data_modules.feedback.people.forces import EXPERTS, LIMIT, check, expert_named, forces
from data_modules.pendulum import experts
from data_modules.pendulum.simulator import InvertedPendulum


def test_steps_are_counted_from_one_as_in_the_picture():
    assert forces("2-4: -1.5, 6: .5", steps=6) == {1: -1.5, 2: -1.5, 3: -1.5, 5: 0.5}


def test_a_keyboard_may_write_dashes_and_lines():
    assert forces("2 – 3: −1;\n1: +2\n", steps=3) == {0: 2.0, 1: -1.0, 2: -1.0}


@pytest.mark.parametrize(
    "text, why",
    [
        ("push it left", "must be an expert .LQRExpert, WeakExpert. or forces"),
        ("3: ", "or forces"),
        ("0: 1", "steps 1 to 9"),
        ("9-10: 1", "steps 1 to 9"),
        ("5-4: 1", "steps 1 to 9"),
        ("1: 3.1", "too strong: each force must be between -3 and 3"),
        ("1-3: 1, 3: 2", "step 3 has two forces"),
    ],
)
def test_what_reads_otherwise_is_refused(text, why):
    with pytest.raises(ValueError, match=why):
        check(text, 9)


@pytest.mark.parametrize("name", ["LQRExpert", " WeakExpert\n", "data_modules.pendulum.experts.LQRExpert"])
def test_an_expert_by_name(name):
    check(name, 9)
    assert type(expert_named(name)()).__name__ == name.strip().rpartition(".")[2]


@pytest.mark.parametrize("name", ["os.system", "LinearExpert", "data_modules.pendulum.simulator.InvertedPendulum"])
def test_nothing_else_is_ever_looked_up(name):
    assert expert_named(name) is None


def test_names_and_limit_are_those_of_the_pendulum():
    assert InvertedPendulum.action_limit == LIMIT and all(hasattr(experts, name) for name in EXPERTS)
