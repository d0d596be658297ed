"""Doctor command: `foreword doctor`, whether this machine, model and prompt are in order.

In: a model and a prompt, or neither. Out: findings as lines or JSON, and their exit status. Judges
nothing itself.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from foreword.cli import early, options
from foreword.cli.console import one_line

if TYPE_CHECKING:
    from foreword.doctor import Finding

POINTER = "if you came for the error\n  {error}\nrun: foreword doctor --cache-error"


def command(
    model: options.Model = None,
    prompt: options.PromptDirectory = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    cache_error: Annotated[
        bool,
        typer.Option(
            "--cache-error", help="explain KeyError 'Cache only has 0 layers', wherever it came up"
        ),
    ] = False,
) -> None:
    """Check versions, and with a model whether cached generation equals the slow obvious
    computation.

    Example: foreword doctor --model smollm2-135m --prompt my-prompt
    """
    from foreword import doctor

    findings: list[Finding] = []
    try:
        early.check(prompts=[prompt], model=model)
        for part in _parts(model, prompt):
            findings += part
            if not as_json:
                _say(part)
    except Exception as error:
        if as_json:
            said = options.of_a_path(error) or error
            options.output.print(doctor.as_json(findings, said))
        raise
    if as_json:
        options.output.print(doctor.as_json(findings))
    elif cache_error or any(doctor.SEED_ERROR in finding.detail for finding in findings):
        options.output.print(f"\n{doctor.SEED_FAILURE}")
    else:
        options.output.print(f"\n{POINTER.format(error=doctor.SEED_ERROR)}")
    raise typer.Exit(doctor.exit_status(findings))


def _parts(model: str | None, prompt: str | None) -> "Iterator[list[Finding]]":
    """Yield the findings, those of each part as soon as they are there."""
    from foreword import doctor

    yield doctor.environment()
    if not (model or prompt):
        return
    said: list[str] = []
    try:
        with _warnings_kept(said):
            backbone, soft_prompt = options.load(model, prompt)
    finally:
        yield [doctor.Finding("loading", "warning", one) for one in said]
    yield doctor.capabilities_findings(backbone, soft_prompt)
    with options.errors.status("testing the model"):
        found = doctor.self_test(backbone, soft_prompt)
    yield found
    if prompt:
        with options.errors.status("testing stock PEFT"):
            found = doctor.peft_findings(backbone, prompt)
        yield found


@contextmanager
def _warnings_kept(said: list[str]) -> "Iterator[None]":
    """Append what foreword warns of meanwhile to a list; nothing else prints it."""
    log, keeper = logging.getLogger("foreword"), _Keeper(said)
    log.addHandler(keeper)
    try:
        yield
    finally:
        log.removeHandler(keeper)


class _Keeper(logging.Handler):
    """Append the messages of warnings to a list."""

    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.said = said

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message."""
        self.said.append(record.getMessage())


def _say(findings: "list[Finding]") -> None:
    for finding in findings:
        said = one_line(f"{finding.name}: {finding.detail}")
        options.output.print(f"{finding.status:<8} {said}")
        if finding.cure:
            options.output.print(f"{'':<8} → {one_line(finding.cure)}")
