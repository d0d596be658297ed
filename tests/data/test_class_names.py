"""Class names: one class that is written in several ways is said, with how often each is."""

import pytest

from foreword.data.class_names import MAX_CLASSES, commonest, num_classes, written_otherwise

ALIKE = ["billing"] * 8 + ["login"] * 4


def test_each_way_of_a_class_is_said_with_its_rows() -> None:
    said = written_otherwise([*ALIKE, "BILLING", "BILLING", " billing ", "login."])
    assert said is not None
    ways = "'billing' (8 rows), 'BILLING' (2), ' billing ' (1); 'login' (4 rows), 'login.' (1)"
    assert f"final stop: {ways}: each is learned as it is written" in said


@pytest.mark.parametrize(
    "answers",
    [
        ALIKE,
        [],
        [" yes", " no"] * 4,
        ["yes", "Yes", "no"],  # more than half as many as rows
        ["a b c d e f", "A b c d e f"] * 4,  # a sentence
        [f"{form}{n}" for n in range(MAX_CLASSES + 1) for form in "aA"] * 2,
    ],
)
def test_nothing_is_said_of_answers_alike_and_of_those_that_name_no_class(
    answers: list[str],
) -> None:
    assert written_otherwise(answers) is None


def test_of_many_the_first_are_said() -> None:
    said = written_otherwise([f"{form}{n}" for n in range(6) for form in "aA"] * 2)
    assert said is not None and said.count("rows)") == 3 and "; and 3 more: each" in said


def test_classes_are_few_and_short() -> None:
    assert num_classes([*ALIKE, "Billing"]) == 2
    assert num_classes(["a", "b", "c"]) == num_classes([]) == 0


def test_the_commonest_class_is_counted_however_it_is_written() -> None:
    assert commonest([*ALIKE, "login.", "Login", "LOGIN"]) == ("billing", 8 / 15)
    assert commonest([*ALIKE, *["Login."] * 5]) == ("login", 9 / 17)


@pytest.mark.parametrize("answers", [[], ["yes"] * 4, ["a", "b", "c"], ["a b c d e f", "g"] * 4])
def test_what_names_no_two_classes_has_no_commonest(answers: list[str]) -> None:
    assert commonest(answers) is None
