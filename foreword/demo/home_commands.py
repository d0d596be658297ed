"""Demo data: spoken home commands with their structured calls, for training and test.

    set the kitchen brightness to 40 percent
    {"intent": "HassLightSet", "area": "kitchen", "brightness": 40}

In: Home Assistant's English grammar (package ``home-assistant-intents``) and the lists below. Out:
rows; each is a random wording of one sentence template, with the call that hassil, the product's
own parser, recognises in the whole grammar. Knows no model, no tokens and no chat format.
"""

import json
import random
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foreword.errors import DataError, DependencyError, InputError

SHORT_INSTRUCTION = (
    "Turn the spoken smart home command into one JSON call: the Home Assistant intent first, "
    "then its slots, such as name, area and brightness. Answer with the JSON only."
)

INSTRUCTION = """\
You turn a spoken smart home command into one JSON call for Home Assistant. Answer with the JSON \
object only: "intent" first, then the slots that were spoken, in the order listed here.

Intents and their slots:
HassTurnOn, HassTurnOff: name, area, floor, domain, device_class. HassTurnOn also opens covers, \
locks locks and activates scenes; HassTurnOff also closes covers and unlocks locks. Lights or fans \
without a name get domain "light" or "fan"; covers without a name get device_class.
HassLightSet: name, area, floor, brightness, color, temperature (in kelvin: candle light 1900, \
warm white 2700, cool white 4000, daylight 6500)
HassSetPosition: name, area, device_class, position
HassFanSetSpeed: name, area, floor, percentage
HassClimateSetTemperature: name, area, floor, temperature
HassClimateGetTemperature: name, area
HassVacuumCleanArea: name, area
HassStartTimer: name, hours, minutes, seconds, conversation_command (a command to run later)
HassCancelTimer, HassTimerStatus: name, area, start_hours, start_minutes, start_seconds
HassShoppingListAddItem: item
HassListAddItem: name (of the list), item
HassMediaSearchAndPlay: name, area, media_class, search_query
HassMediaPause (also to stop), HassMediaNext, HassMediaPrevious: name, area
HassSetVolume: name, area, volume_level
HassSetVolumeRelative: name, area, floor, volume_step ("up", "down", or a number, negative for down)
HassGetWeather: name (of the place)
HassGetCurrentTime: no slots

Rules: leave out a slot that was not spoken; without a room there is no area. name is a device, \
scene, list, place or timer as it was spoken, without "the" or "my". Numbers are JSON numbers \
without units; half an hour is 30 minutes; maximum brightness is 100, minimum is 1. device_class \
is singular: awning, blind, curtain, door, garage (garage door), gate, shade, shutter, window. \
media_class is artist, album, track (also song), playlist, podcast, movie or tv_show.

Examples:
set the kitchen brightness to 40 percent
{"intent": "HassLightSet", "area": "kitchen", "brightness": 40}
shut the blinds in the office
{"intent": "HassTurnOff", "area": "office", "device_class": "blind"}
set a timer for 1 hour and 20 minutes called pizza
{"intent": "HassStartTimer", "name": "pizza", "hours": 1, "minutes": 20}
"""

INTENTS = (
    "HassTurnOn", "HassTurnOff", "HassLightSet", "HassSetPosition", "HassFanSetSpeed",
    "HassClimateSetTemperature", "HassClimateGetTemperature", "HassVacuumCleanArea",
    "HassStartTimer", "HassCancelTimer", "HassTimerStatus", "HassShoppingListAddItem",
    "HassListAddItem", "HassMediaSearchAndPlay", "HassMediaPause", "HassMediaNext",
    "HassMediaPrevious", "HassSetVolume", "HassSetVolumeRelative", "HassGetWeather",
    "HassGetCurrentTime",
)  # fmt: skip

FEW_INTENTS = (
    "HassTurnOn", "HassTurnOff", "HassLightSet", "HassClimateSetTemperature",
    "HassClimateGetTemperature", "HassSetVolume", "HassMediaPause", "HassShoppingListAddItem",
    "HassGetWeather", "HassVacuumCleanArea",
)  # fmt: skip
"""What a small model learns in minutes."""

SLOTS = (
    "name", "area", "floor", "domain", "device_class", "hours", "minutes", "seconds",
    "start_hours", "start_minutes", "start_seconds", "item", "media_class", "search_query",
    "brightness", "color", "temperature", "percentage", "position", "volume_level", "volume_step",
    "conversation_command",
)  # fmt: skip
"""Every slot that a call may have, in the order in which a call has them."""

_NAMES = {
    "light": "desk lamp|floor lamp|reading lamp|bedside lamp|chandelier|spotlights|night light",
    "switch": "kettle|coffee maker|dehumidifier|christmas tree|water heater",
    "fan": "ceiling fan|tower fan|extractor fan|table fan",
    "cover": "roller blind|skylight|venetian blinds|roof window|projector screen|sun sail",
    "lock": "front door|back door|side door|tool shed|front gate",
    "media_player": "tv|soundbar|radio|record player|stereo|smart speaker",
    "climate": "thermostat|air conditioner|heat pump|radiator",
    "vacuum": "robot vacuum|roomba|dusty",
    "todo": "packing|camping|hardware store|christmas|weekend|garden",
    "weather": "london|paris|tokyo|new york|berlin|madrid|sydney|oslo",
    "scene": "movie night|good morning|party|bedtime|dinner|reading",
}
_WORDS = {
    "area": "kitchen|living room|bedroom|bathroom|garage|office|hallway|dining room|nursery"
    "|guest room|laundry room|basement|attic|library",
    "floor": "upstairs|downstairs|ground floor|first floor|second floor|top floor",
    "timer_name": "pizza|pasta|laundry|egg|tea|workout|nap|cake|bread|study|rice|meditation",
    "timer_command": "turn off the lights|turn on the tv|open the blinds|lock the front door"
    "|pause the music|turn off the heater|close the garage door|turn on the kettle",
    "shopping_list_item": "milk|eggs|bread|apples|toilet paper|olive oil|coffee beans|dog food"
    "|bananas|butter|orange juice|rice|cheese|tomatoes|soap|batteries",
    "todo_list_item": "tent|sunscreen|passport|light bulbs|candles|hammer|sleeping bag|screws"
    "|wrapping paper|flashlight|rope|wool socks|matches|white paint|duct tape|bug spray",
    "search_query": "blue moon|the long way home|golden days|northern lights|homecoming|midnight"
    "|sunrise|wild hearts|the last summer|paper planes|silver city|dream on",
}
_NUMBERS: dict[str, Iterable[float]] = {
    "temperature": (*range(15, 27), 18.5, 19.5, 20.5, 21.5),
    "brightness": range(5, 101, 5),
    "position": range(5, 101, 5),
    "fan_speed": range(10, 101, 10),
    "volume": range(5, 101, 5),
    "volume_step_up": range(5, 31, 5),
    "volume_step_down": range(5, 31, 5),
    "color_temperature": range(2000, 6501, 100),
    "timer_hours": (1, 2, 3, 4, 5, 6, 8, 12),
    "timer_minutes": (*range(2, 16), *range(20, 60, 5)),
    "timer_seconds": range(10, 60, 5),
}

# The parser takes far more than people say. What follows only narrows what is sampled; the truth
# still comes from the whole grammar.
_SPOKEN_RULES = {
    "all": "all",
    "the": "(the|the|the|my)",
    "here": "in (here|this room)",
    "light": "(light|lights)",
    "turn": "(turn|switch)",
    "open": "(open|raise)",
    "close": "(close|shut|lower)",
    "what_is": "(what's|what is)",
    "how_is": "how's",
    "track": "(song|track)",
    "media": "(music|movie|tv show|song)",
    "numeric_value_set": "(set|change|turn [(up|down)])",
}
_SPOKEN_TEMPLATE = (
    (r"^\[(<set>|<numeric_value_set>)\]", r"\1"),
    (r"\[(the|volume)\](?= (weather|\(up\|down\)))", r"\1"),
    (r"\[(in|on|of|<in>|for)(\|for)?\](?= \[<the>\])", r"\1"),
    (r"\[of( \[the\])?\](?= fan)", r"of\1"),
    (r"\[a\|an\|the\|my\]", "[a|a|a|the]"),
    (r"\[to\] (on|off)\b", r"\1"),
    (r"\{area\} \[<the>\] \{name\}", "{area} {name}"),
    (r"\{name\} \[list\]", "{name} list"),
    (r"scene \[<the>\]", "scene"),
    (r"\|item\b|\|media \[player\[s\]\]", ""),
    (r"\[tv\] show\[s\]", "tv show"),
    (r"\( \|-\)(hour|minute|second)\[s\](?=.* timer)", r" \1"),
    (r"\( \|-\)(hour|minute|second)\[s\]", r" \1s"),
    (r"timer\[s\]", "timer"),
    (r"\b(an?) (hour|minute)\[s\]", r"\1 \2"),
    (r"\[a\] (\{timer_half:\w+\}) (hour|minute)\[s\]", r"a \1 \2s"),
)
_UNSPOKEN_TEMPLATE = re.compile(
    r"\{name\} <light>|^\[<the>\] \{name\}$|<everywhere>|make sure|\{name\} \(play"
)
_UNSPOKEN = re.compile(
    r"\b(\w+) \1\b|\b(the|my) (the|my)\b| [%°]|/|degree\b|day light"
    r"|\ba (8|11|18)\b|^make .* to |switch .*out\b|(turn|volume) (in|de)crease"
    r"|lights? \w+ floor|^\w+ (up|down) .*(up|down)|(open|raise|close|shut|lower) .*position"
    r"|\b(in|on|of|for|my) (the |my )?(up|down)stairs\b|stairs floor"
    r"|\ball (the |my )?(\w+ )*(light|fan|awning|blind|curtain|door|gate|shade|shutter|window)\b"
    rf"|\b(the|my) ({_NAMES['weather']})\b|\bat ({_NAMES['weather']})\b"
)
_HERE = "<here>"  # the room of the speaker, which hassil puts into `area` where none was said
_TRIES = 20


@dataclass(frozen=True)
class Command:
    """One row: what is said, the call as JSON text, and the template that the wording is from.

    A call has the slots that were spoken, under the parser's names: `area` is absent where the
    speaker's own room is meant, and `domain` only tells lights from fans in HassTurnOn and
    HassTurnOff.
    """

    text: str
    call: str
    template: str


@dataclass(frozen=True)
class HomeCommands:
    """Three splits that share neither a text nor a sentence template."""

    train: tuple[Command, ...]
    validation: tuple[Command, ...]
    test: tuple[Command, ...]


def home_commands(
    num_train: int,
    num_validation: int,
    num_test: int,
    seed: int = 0,
    intents: Sequence[str] = INTENTS,
) -> HomeCommands:
    """Write rows for the demo task, split by sentence template and balanced over `intents`.

    Same arguments and same releases of the two packages, same rows. A row of a later split is
    dropped where the templates of the splits before it parse it to the same call, so no wording of
    the test set was seen in training. Intents with few templates or few wordings have fewer rows,
    and those with fewer than four templates have none in validation.

    Raises:
        DependencyError: hassil or home-assistant-intents is not installed.
        InputError: a number is negative, or an intent is unknown.
        DataError: the templates cannot give so many rows.
    """
    if min(num_train, num_validation, num_test) < 0:
        raise InputError("home_commands: the number of rows of a split cannot be negative")
    if unknown := set(intents) - set(INTENTS):
        raise InputError(f"home_commands: unknown intents {sorted(unknown)}; see INTENTS")
    grammar = _Grammar()
    rng = random.Random(seed)
    chosen = [template for template in grammar.templates if template.intent in intents]
    train, validation, test = _split(chosen, rng)
    writer = _Writer(grammar, rng)
    train_rows = writer.rows("train", num_train, train, earlier=[])
    known = {json.loads(row.call)["intent"] for row in train_rows}
    validation = [template for template in validation if template.intent in known]
    test = [template for template in test if template.intent in known]
    return HomeCommands(
        train=train_rows,
        validation=writer.rows("validation", num_validation, validation, earlier=train),
        test=writer.rows("test", num_test, test, earlier=train + validation),
    )


def parser() -> Callable[[str], str | None]:
    """Return Home Assistant's own parser: from what is said to the call, None where it has none.

    Raises:
        DependencyError: hassil or home-assistant-intents is not installed.
    """
    return _Grammar().call


def instruction(intents: Sequence[str]) -> str:
    """Return `INSTRUCTION` without the lines of other intents."""
    lines = []
    for line in INSTRUCTION.splitlines():
        named = re.findall(r"Hass\w+", line.split(":")[0]) if line.startswith("Hass") else []
        if not named or set(named) & set(intents):
            lines.append(line)
    return "\n".join(lines)


def exact(prediction: str, call: str) -> bool:
    """Whether the prediction is one JSON object, and nothing more, equal to the call."""
    got, expected = (json.dumps(_parsed(text), sort_keys=True) for text in (prediction, call))
    return got == expected != "null"


def same_intent(prediction: str, call: str) -> bool:
    """Whether the prediction is one JSON object with the intent of the call."""
    value = _parsed(prediction)
    return value is not None and value.get("intent") == json.loads(call)["intent"]


def _parsed(text: str) -> dict[str, Any] | None:
    """The object that the text is, with 40.0 read as 40; None where it is not one JSON object."""
    try:
        value = json.loads(
            text,
            parse_float=lambda number: _plain(float(number)),
            parse_constant=int,  # NaN and Infinity are no JSON: int refuses them
        )
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _plain(value: Any) -> Any:
    """A slot's value as JSON has it: 40.0 is 40."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _call(intent: str, slots: Mapping[str, Any]) -> str:
    """The canonical text of a call: intent, then slots in the order of SLOTS."""
    hidden = {"area"} if slots.get("area") == _HERE else set()
    if intent not in ("HassTurnOn", "HassTurnOff") or "device_class" in slots:
        hidden.add("domain")
    shown = {s: _plain(slots[s]) for s in SLOTS if s in slots and s not in hidden}
    return json.dumps({"intent": intent, **shown}, ensure_ascii=False)


@dataclass(frozen=True)
class _Template:
    intent: str
    text: str
    expression: Any  # the narrowed template, parsed
    names: tuple[str, ...]  # what {name} may be
    slots: Mapping[str, Any]  # what the grammar adds without a word


class _Grammar:
    """The English grammar with our lists: gives the templates and recognises sentences."""

    def __init__(self) -> None:
        try:
            import hassil
            from home_assistant_intents import get_intents
        except ImportError as error:
            raise DependencyError(
                "the home commands need hassil and home-assistant-intents: "
                "pip install 'foreword[demo]'"
            ) from error
        self.hassil: Any = hassil
        self._source: Any = get_intents("en")
        self._blocks = {i: self._source["intents"].get(i, {"data": []})["data"] for i in INTENTS}
        self._whole: Any = hassil.Intents.from_dict(self._source)
        self.rules = self._whole.expansion_rules | {
            rule: hassil.parse_sentence(text) for rule, text in _SPOKEN_RULES.items()
        }
        self.lists = self._whole.slot_lists
        self._own_lists = {
            "name": hassil.TextSlotList.from_tuples(
                (name, name, {"domain": domain})
                for domain, names in _NAMES.items()
                for name in names.split("|")
            ),
            "area": hassil.TextSlotList.from_strings(_WORDS["area"].split("|")),
            "floor": hassil.TextSlotList.from_strings(_WORDS["floor"].split("|")),
        }
        self.templates = [t for intent in INTENTS for t in self._templates_of(intent)]

    def call(self, text: str, intents: Any = None) -> str | None:
        """The call that hassil recognises, in the whole grammar by default; None for no match."""
        result = self.hassil.recognize_best(
            text,
            intents or self._whole,
            slot_lists=self._own_lists,
            intent_context={"area": _HERE},
            best_slot_name="name",
        )
        if result is None:
            return None
        slots = {name: entity.value for name, entity in result.entities.items()}
        return _call(result.intent.name, slots)

    def only(self, templates: Iterable[_Template]) -> Any:
        """The grammar with these templates alone."""
        kept = {template.text for template in templates}
        intents: dict[str, Any] = {intent: {"data": []} for intent in self._blocks}
        for intent, blocks in self._blocks.items():
            for block in blocks:
                sentences = [text for text in block["sentences"] if text in kept]
                intents[intent]["data"].append(block | {"sentences": sentences})
        return self.hassil.Intents.from_dict(self._source | {"intents": intents})

    def _templates_of(self, intent: str) -> list[_Template]:
        """The templates of an intent that people would say and that our lists can fill."""
        found: dict[str, _Template] = {}
        for block in self._blocks[intent]:
            context = block.get("requires_context", {})
            domains = [domain for domain in context.get("domain", ()) if domain in _NAMES]
            names = tuple(name for domain in domains for name in _NAMES[domain].split("|"))
            slots = block.get("slots", {}) | ({"area": _HERE} if "area" in context else {})
            for text in block["sentences"]:
                expression = self.hassil.parse_sentence(_narrow(text)).expression
                template = _Template(intent, text, expression, names, slots)
                if self._can_say(template):
                    found.setdefault(text, template)
        return list(found.values())

    def _can_say(self, template: _Template) -> bool:
        if _UNSPOKEN_TEMPLATE.search(template.text):
            return False
        text_lists = [n for n, v in self.lists.items() if isinstance(v, self.hassil.TextSlotList)]
        known = {*_WORDS, *_NUMBERS, *text_lists, *(["name"] if template.names else [])}
        references = template.expression.list_references(self.rules)
        return all(r.list_name in known and r.slot_name in SLOTS for r in references)


def _narrow(text: str) -> str:
    """A narrower template: no article where people say none, plurals that agree."""
    preposition = "on" if "{floor}" in text else "in"
    for pattern, replacement in _SPOKEN_TEMPLATE:
        text = re.sub(pattern, replacement, text)
    return text.replace("<in>", preposition).replace("(in|on)", preposition)


def _split(templates: list[_Template], rng: random.Random) -> tuple[list[_Template], ...]:
    """Templates for train, validation and test: of each intent three, one and one in five."""
    parts: tuple[list[_Template], ...] = ([], [], [])
    for intent in INTENTS:
        own = [template for template in templates if template.intent == intent]
        rng.shuffle(own)
        num_test = max(1, len(own) // 5) if len(own) > 1 else 0
        num_validation = num_test if len(own) >= 4 else 0
        parts[2].extend(own[:num_test])
        parts[1].extend(own[num_test : num_test + num_validation])
        parts[0].extend(own[num_test + num_validation :])
    return parts


class _Writer:
    """Writes random wordings of templates, none twice; drops those that hassil parses otherwise."""

    def __init__(self, grammar: _Grammar, rng: random.Random) -> None:
        self._grammar = grammar
        self._rng = rng
        self._tried: set[str] = set()

    def rows(
        self, split: str, count: int, templates: list[_Template], earlier: list[_Template]
    ) -> tuple[Command, ...]:
        """`count` rows, in turn over intents and, within an intent, over its templates."""
        seen = self._grammar.only(earlier) if earlier else None
        turns = {
            intent: deque(template for template in templates if template.intent == intent)
            for intent in INTENTS
        }
        rows: list[Command] = []
        while len(rows) < count and any(turns.values()):
            for turn in [turn for turn in turns.values() if turn][: count - len(rows)]:
                template = turn.popleft()
                if (row := self._row(template, seen)) is not None:
                    rows.append(row)
                    turn.append(template)
        if len(rows) < count:
            raise DataError(
                f"home_commands: num_{split} is {count}, but the templates of that split give "
                f"{len(rows)} rows: ask for fewer"
            )
        self._rng.shuffle(rows)
        return tuple(rows)

    def _row(self, template: _Template, seen: Any) -> Command | None:
        """A new row of a template; None where it has no more to say."""
        for _ in range(_TRIES):
            slots = dict(template.slots)
            text = " ".join(self._say(template.expression, template, slots).split())
            text = re.sub(r"\b1 (hour|minute)s\b", r"1 \1", text)
            if text in self._tried or _UNSPOKEN.search(text):
                continue
            self._tried.add(text)
            call = _call(template.intent, slots)
            if self._grammar.call(text) != call:
                continue
            if seen is None or self._grammar.call(text, seen) != call:
                return Command(text, call, template.text)
        return None

    def _say(self, part: Any, template: _Template, slots: dict[str, Any]) -> str:
        """One random wording of a part of a template; the values said are put into `slots`."""
        kinds = self._grammar.hassil
        if isinstance(part, kinds.TextChunk):
            return str(part.original_text)
        if isinstance(part, kinds.RuleReference):
            return self._say(self._grammar.rules[part.rule_name].expression, template, slots)
        if isinstance(part, kinds.ListReference):
            text, slots[part.slot_name] = self._value(part.list_name, template)
            return text
        if isinstance(part, kinds.Alternative):
            items = part.items
            if part.is_optional:  # the last item is the empty one
                items = items[:-1] if self._rng.random() < 0.8 else items[-1:]
            return self._say(self._rng.choice(items), template, slots)
        return "".join(self._say(item, template, slots) for item in part.items)

    def _value(self, name: str, template: _Template) -> tuple[str, Any]:
        """A random entry of a list: what is said and what the slot then holds."""
        if name in _NUMBERS:
            number = self._rng.choice(tuple(_NUMBERS[name]))
            return str(number), -number if name == "volume_step_down" else number
        if name == "name" or name in _WORDS:
            words = template.names if name == "name" else _WORDS[name].split("|")
            word = self._rng.choice(words)
            return word, word
        value = self._rng.choice(self._grammar.lists[name].values)
        return self._say(value.text_in, template, {}), value.value_out
