"""Doctor command: `foreword doctor`, whether this machine, model and prompt are in order.

In: a model and a prompt, or neither. Out: findings as lines or JSON, and their exit status. Judges
nothing itself.
"""

from typing import Annotated

import typer

from foreword.cli import early, options
from foreword.cli.console import one_line


def command(
    model: options.Model = None,
    prompt: options.PromptDirectory = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Check versions, and with a model whether cached generation equals the slow obvious
    computation.

    Example: foreword doctor --model smollm2-135m --prompt my-prompt
    """
    early.check(prompts=[prompt], model=model)
    from foreword import doctor

    findings = doctor.environment()
    if model or prompt:
        backbone, soft_prompt = options.load(model, prompt)
        with options.errors.status("testing the model"):
            findings += doctor.capabilities_findings(backbone)
            findings += doctor.self_test(backbone, soft_prompt)
            if prompt:
                findings += doctor.peft_findings(backbone, prompt)
    if as_json:
        options.output.print(doctor.as_json(findings))
    else:
        for finding in findings:
            said = one_line(f"{finding.name}: {finding.detail}")
            options.output.print(f"{finding.status:<8} {said}")
            if finding.cure:
                options.output.print(f"{'':<8} → {one_line(finding.cure)}")
        options.output.print(f"\n{doctor.SEED_FAILURE}")
    raise typer.Exit(doctor.exit_status(findings))
