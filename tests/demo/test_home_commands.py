"""The demo task: rows come from hassil's own grammar, and no test wording was seen in training."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from foreword.demo import home_commands as task
from foreword.demo.home_commands import Command, HomeCommands, exact, home_commands, same_intent
from foreword.errors import DataError, DependencyError, InputError

CALL = '{"intent": "HassLightSet", "area": "kitchen", "brightness": 40}'


@pytest.fixture(scope="module")
def rows() -> HomeCommands:
    pytest.importorskip("hassil")
    return home_commands(300, 60, 100, seed=0)


@pytest.fixture(scope="module")
def every_row(rows: HomeCommands) -> list[Command]:
    return [*rows.train, *rows.validation, *rows.test]


def hassil_settings() -> dict[str, Any]:
    """Our names, areas and floors, and a speaker in some room, as the parser takes them."""
    import hassil

    names = [(n, n, {"domain": d}) for d, ns in task._NAMES.items() for n in ns.split("|")]
    lists = {"name": hassil.TextSlotList.from_tuples(names)}
    for name in ("area", "floor"):
        lists[name] = hassil.TextSlotList.from_strings(task._WORDS[name].split("|"))
    return {"slot_lists": lists, "intent_context": {"area": "the room of the speaker"}}


def intent_of(row: Command) -> str:
    return str(json.loads(row.call)["intent"])


def test_the_sizes_are_those_asked_for(rows: HomeCommands) -> None:
    assert (len(rows.train), len(rows.validation), len(rows.test)) == (300, 60, 100)


def test_splits_share_no_template(rows: HomeCommands) -> None:
    train, validation, test = (
        {row.template for row in split} for split in (rows.train, rows.validation, rows.test)
    )
    assert not train & test and not train & validation and not validation & test


def test_no_text_occurs_twice(every_row: list[Command]) -> None:
    assert len({row.text for row in every_row}) == len(every_row)


def test_every_intent_of_test_and_validation_is_trained(rows: HomeCommands) -> None:
    trained = {intent_of(row) for row in rows.train}
    assert {intent_of(row) for row in (*rows.test, *rows.validation)} <= trained


def test_intents_are_balanced(rows: HomeCommands) -> None:
    counts = Counter(intent_of(row) for row in rows.train)
    assert set(counts) == set(task.INTENTS)
    assert max(counts.values()) <= 1.2 * len(rows.train) / len(counts)


def test_the_call_is_what_the_parser_recognises(every_row: list[Command]) -> None:
    import hassil
    from home_assistant_intents import get_intents

    grammar, settings = hassil.Intents.from_dict(get_intents("en")), hassil_settings()
    for row in every_row[::3]:
        result = hassil.recognize_best(row.text, grammar, best_slot_name="name", **settings)
        spoken = {name: e.value for name, e in result.entities.items() if e.text}
        call = json.loads(row.call)
        fixed = {"domain": call["domain"]} if "domain" in call else {}
        assert {"intent": result.intent.name, **spoken, **fixed} == call
        assert fixed.items() <= {n: e.value for n, e in result.entities.items()}.items()


def test_a_sentence_that_the_parser_takes_for_another_call_is_no_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("hassil")
    recognise = task._Grammar.call

    def hears_no_volume(grammar: Any, text: str, intents: Any = None) -> str | None:
        return None if "volume" in text else recognise(grammar, text, intents)

    monkeypatch.setattr(task._Grammar, "call", hears_no_volume)
    rows = home_commands(60, 0, 0).train
    assert len(rows) == 60 and not any("volume" in row.text for row in rows)


def test_the_template_of_a_row_gives_its_text(every_row: list[Command]) -> None:
    import hassil
    from home_assistant_intents import get_intents

    grammar, settings = hassil.Intents.from_dict(get_intents("en")), hassil_settings()
    # is_match takes no wildcard at the end of a sentence, so those get the words that we say.
    words = {n: hassil.TextSlotList.from_strings(ws.split("|")) for n, ws in task._WORDS.items()}
    settings["slot_lists"] = grammar.slot_lists | words | settings["slot_lists"]
    settings["expansion_rules"] = grammar.expansion_rules
    for row in every_row:
        assert hassil.is_match(row.text, hassil.parse_sentence(row.template), **settings), row


def test_a_parser_of_the_training_templates_fails_on_test(rows: HomeCommands) -> None:
    grammar = task._Grammar()
    trained = {row.template for row in (*rows.train, *rows.validation)}
    seen = grammar.only(t for t in grammar.templates if t.text in trained)
    assert all(grammar.call(row.text, seen) != row.call for row in rows.test)


def test_texts_read_like_speech(every_row: list[Command]) -> None:
    for row in every_row:
        assert re.fullmatch(r"[a-z0-9.'%°-]+( [a-z0-9.'%°-]+)*", row.text), row.text


def test_calls_are_canonical(every_row: list[Command]) -> None:
    for row in every_row:
        call = json.loads(row.call)
        slots = list(call)[1:]
        assert json.dumps(call) == row.call and list(call)[0] == "intent"
        assert slots == sorted(slots, key=task.SLOTS.index)
        assert "<" not in row.call and ".0" not in row.call


def test_rows_depend_on_nothing_but_arguments() -> None:
    pytest.importorskip("hassil")
    program = (
        "import hashlib; from foreword.demo.home_commands import home_commands; "
        "print(hashlib.sha256(repr(home_commands(40, 10, 20, seed=5)).encode()).hexdigest())"
    )
    other = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    here = home_commands(40, 10, 20, seed=5)
    assert other.stdout.strip() == hashlib.sha256(repr(here).encode()).hexdigest()
    assert here != home_commands(40, 10, 20, seed=6)


def test_import_needs_neither_torch_nor_the_extra() -> None:
    program = (
        "import sys, foreword.demo.home_commands; "
        "assert not {'torch', 'hassil', 'home_assistant_intents'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("missing", ["hassil", "home_assistant_intents"])
def test_a_missing_extra_prints_its_install_line(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(DependencyError, match=r"pip install 'foreword\[demo\]'"):
        home_commands(1, 0, 0)


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(InputError, match="negative"):
        home_commands(10, -1, 5)


def test_more_rows_than_the_templates_give_are_refused() -> None:
    pytest.importorskip("hassil")
    with pytest.raises(DataError, match="num_test is 3.* give 0 rows"):
        home_commands(0, 0, 3)  # no intent is trained, so none may be tested


@pytest.mark.parametrize(
    ("prediction", "is_exact", "is_same_intent"),
    [
        (CALL, True, True),
        (f"\n {CALL} \n", True, True),
        ('{"brightness":40.0,"area":"kitchen","intent":"HassLightSet"}', True, True),
        (CALL.replace("40", "41"), False, True),
        (CALL.replace("40", '"40"'), False, True),
        (CALL.replace("40", "true"), False, True),
        (CALL.replace(', "brightness": 40', ""), False, True),
        (CALL.replace("40", '40, "floor": "first floor"'), False, True),
        (CALL.replace("LightSet", "TurnOn"), False, False),
        (CALL + " Done.", False, False),
        (CALL + CALL, False, False),
        (CALL[:-1], False, False),
        (CALL.replace("40", "NaN"), False, False),
        ("", False, False),
        ("null", False, False),
        ("[" * 100_000, False, False),
        ('"HassLightSet"', False, False),
        ("{}", False, False),
        ('{"intent": ["HassLightSet"]}', False, False),
    ],
)
def test_scoring(prediction: str, is_exact: bool, is_same_intent: bool) -> None:
    assert exact(prediction, CALL) is is_exact
    assert same_intent(prediction, CALL) is is_same_intent


def test_a_one_is_not_true() -> None:
    one = '{"intent": "HassLightSet", "brightness": 1}'
    assert not exact(one.replace("1", "true"), one)


def test_the_instruction_names_every_intent_and_slot_and_its_examples_are_right() -> None:
    assert all(name in task.INSTRUCTION for name in (*task.INTENTS, *task.SLOTS))
    pytest.importorskip("hassil")
    lines = task.INSTRUCTION.split("Examples:\n")[1].splitlines()
    grammar = task._Grammar()
    assert [grammar.call(text) for text in lines[::2]] == lines[1::2]
