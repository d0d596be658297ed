"""Show command: `foreword show`, what a prompt is and how it looks beside its model.

In: a prompt, and where asked for its model, another prompt, a text. Out: tables or JSON, and a
picture. Computes nothing itself.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from foreword.cli import early, options
from foreword.cli.console import one_line, strict_json
from foreword.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from foreword.backbone import Backbone
    from foreword.evaluation.inspection import LayerNorms, Nearest, TokenNorms
    from foreword.evaluation.plots import Panel
    from foreword.prompt.prefix import Prefix
    from foreword.prompt.stored_prompt import StoredPrompt

NEAREST = 3
MOST_NEAREST = 100  # a table of more is not read
SIDES = ("keys", "values", "recurrent")


def command(
    directory: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="directory or Hub id of a soft prompt")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="the same, as other commands take it")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="load this base model, to lay the prompt beside its vocabulary"),
    ] = None,
    nearest: Annotated[
        int, typer.Option(help="vocabulary tokens for each virtual token")
    ] = NEAREST,
    other: Annotated[
        str | None, typer.Option("--with", help="another prompt to compare with")
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            "--input", help="text, or @FILE: the attention that each virtual token receives on it"
        ),
    ] = None,
    png: Annotated[str | None, typer.Option(help="draw all of it into this PNG file")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Say what a prompt is: base, form, size, metrics, and with its model what is near it.

    Example: foreword show my-prompt --model smollm2-135m --input "turn on the lamp"
    """
    if (directory is None) == (prompt is None):
        raise InputError("which prompt? give one directory, as PROMPT or in --prompt")
    if not 1 <= nearest <= MOST_NEAREST:
        raise InputError(f"--nearest must be from 1 to {MOST_NEAREST}, got {nearest}")
    if nearest != NEAREST and model is None and text is None:
        raise InputError("--nearest looks into the vocabulary of a model: give --model, too")
    early.check(prompts=[other], model=model)
    from foreword.prompt import stored_prompt

    name = str(directory or prompt)
    stored = stored_prompt.read(name)
    if png and stored.form == "embeddings" and (model, other, text) == (None, None, None):
        raise InputError("nothing to draw; give --model, --with or --input")
    said = options.text_of(text, "--input") if text is not None else None
    if png:
        from foreword.evaluation import plots

        plots.check(png)
    view = View(name, stored, model, text is not None)
    if view.backbone is not None and view.prompt.form == "embeddings":
        view.show_tokens(nearest)
    if view.prompt.form == "key_values":
        view.show_layers()
    if other is not None:
        view.show_likeness(other)
    if said is not None:
        view.show_attention(said)
    try:
        if png:
            view.draw(png)
    finally:  # what was found is shown, whatever becomes of the picture
        if as_json:
            options.output.print(strict_json(view.report))
        else:
            view.print()


class View:
    """What is known of a prompt: a report for JSON, tables for the terminal, panels to draw."""

    def __init__(self, directory: str, stored: "StoredPrompt", model: str | None, is_eager: bool):
        from foreword.prompt.soft_prompt import SoftPrompt

        self.directory = directory
        self.prompt = SoftPrompt.from_stored(stored)
        self.report = self.prompt.outline()
        self.num_plain = len(self.report)
        self.tables: list[Table | str] = []
        self.panels: list[Panel] = []
        self.backbone: Backbone | None = None
        if model or is_eager:
            backbone, _ = options.load(model, directory)
            self.backbone = _with_eager_attention(backbone) if is_eager else backbone
            self.backbone.compile(self.prompt)  # refuses a wrong base by name

    def show_tokens(self, count: int) -> None:
        """Compare an embedding prompt with the vocabulary."""
        from foreword.evaluation import inspection
        from foreword.evaluation.plots import Lines

        assert self.backbone is not None
        found = inspection.nearest_tokens(self.backbone, self.prompt, count)
        norms = inspection.token_norms(self.backbone, self.prompt)
        self.report["nearest tokens"] = [asdict(one) for one in found]
        self.report["norms"] = asdict(norms)
        self.tables.append(tokens_table(found, norms))
        names = ("table, 5 %", "table, median", "table, 95 %")
        series = {"prompt": norms.of_prompt} | {
            name: (value,) * len(norms.of_prompt)
            for name, value in zip(names, norms.table, strict=True)
        }
        self.panels.append(Lines("norms", series, "virtual token"))

    def show_layers(self) -> None:
        """Show the norms of a key/value prompt, layer by layer."""
        from foreword.evaluation import inspection
        from foreword.evaluation.plots import Lines

        note = "a key/value prompt has no token space: it is a state, not embeddings"
        norms = inspection.layer_norms(self.prompt.states)
        self.report["nearest tokens"] = note
        self.report["layer norms"] = [asdict(layer) for layer in norms]
        self.tables += [f"nearest tokens: {note}", layers_table(norms)]
        columns = {side: [getattr(layer, side) for layer in norms] for side in SIDES}
        series = {
            side: [float("nan") if value is None else value for value in values]
            for side, values in columns.items()
            if any(value is not None for value in values)
        }
        self.panels.append(Lines("mean norms", series, "layer"))

    def show_likeness(self, other: str) -> None:
        """Compare virtual tokens with another prompt's, as prefixes where a model is at hand."""
        from foreword.evaluation import inspection
        from foreword.evaluation.plots import Map
        from foreword.prompt.soft_prompt import SoftPrompt

        pair: list[SoftPrompt | Prefix] = [self.prompt, SoftPrompt.load(other)]
        space: str = self.prompt.form
        if self.backbone is not None and pair[1].form != self.prompt.form:  # type: ignore[union-attr]
            pair, space = [self.backbone.compile(one) for one in pair], "compiled to prefixes"
        cosines = inspection.similarity(*pair)
        self.report["similarity"] = {"with": other, "space": space, "cosines": cosines.tolist()}
        self.tables.append(f"similarity to {other} ({space}): {likeness(cosines)}")
        title = "cosine of virtual tokens"
        self.panels.append(Map(title, cosines.tolist(), (self.directory, other)))

    def show_attention(self, text: str) -> None:
        """Show the attention of an input's tokens to each virtual token."""
        from foreword import chat
        from foreword.evaluation import inspection
        from foreword.evaluation.plots import Map

        assert self.backbone is not None
        config = chat.encoding_of(self.prompt)
        typed = chat.typed(self.backbone, self.prompt, text)
        ids, _ = chat.encode(self.backbone, typed, config)
        paid = inspection.attention_received(self.backbone, self.prompt, ids)
        by_layer = paid.mean(1)
        self.report["attention"] = {
            "input tokens": len(ids),
            "mean of tokens": by_layer.tolist(),
            "last token": paid[:, -1].tolist(),
        }
        self.tables.append(attention_table(paid))
        title = "attention received, mean over heads and input tokens"
        self.panels.append(Map(title, by_layer.tolist(), ("attending layer", "virtual token")))

    def draw(self, path: str) -> None:
        """Draw every panel into one picture."""
        from foreword.evaluation import plots

        plots.draw_panels(path, self.panels)

    def print(self) -> None:
        """Print what the prompt says of itself, then the tables."""
        plain = dict(list(self.report.items())[: self.num_plain])
        width = max(len(name) for name in plain)
        for name, value in plain.items():
            options.output.print(f"{name:<{width}}  {one_line(value)}")
        for table in self.tables:
            options.output.print(table)


def tokens_table(found: "list[Nearest]", norms: "TokenNorms") -> Table:
    """Return one row for each virtual token: its neighbours and its norm."""
    low, middle, high = norms.table
    table = Table(
        "token", "norm", "longer than", "nearest by cosine", "by dot product",
        title=f"norms of the table: 5 % {low:.3g}, median {middle:.3g}, 95 % {high:.3g}",
    )  # fmt: skip
    for index, one in enumerate(found):
        by_cosine, by_dot = (
            "  ".join(f"{neighbour.text!r} {neighbour.nearness:.2f}" for neighbour in neighbours)
            for neighbours in (one.by_cosine, one.by_dot)
        )
        share = f"{norms.ranks[index]:.0%}"
        table.add_row(str(index), f"{norms.of_prompt[index]:.3g}", share, by_cosine, by_dot)
    return table


def layers_table(norms: "list[LayerNorms]") -> Table:
    """Return one row for each layer."""
    table = Table("layer", "keys", "values", "recurrent", title="mean norms")
    for index, layer in enumerate(norms):
        cells = ("-" if v is None else f"{v:.3g}" for v in asdict(layer).values())
        table.add_row(str(index), *cells)
    return table


def attention_table(paid: "Tensor") -> Table:
    """Return one row for each virtual token; `paid` is `[L, T, P]`."""
    whole, last = paid.sum(2).mean().item(), paid[:, -1].sum(1).mean().item()
    table = Table(
        "token", "input tokens", "last token", "most in layer",
        title=f"attention received: {whole:.1%} of the input tokens', {last:.1%} of the last one's",
    )  # fmt: skip
    by_layer = paid.mean(1)
    for index in range(paid.shape[2]):
        mean, end = by_layer[:, index].mean().item(), paid[:, -1, index].mean().item()
        layer = int(by_layer[:, index].argmax())
        table.add_row(str(index), f"{mean:.2%}", f"{end:.2%}", str(layer))
    return table


def likeness(cosines: "Tensor") -> str:
    """Describe cosines `[P first, P second]` in words."""
    best = cosines.max(1)
    said = f"the best match of a token has cosine {best.values.mean().item():.3f} in the mean"
    if cosines.shape[0] == cosines.shape[1]:
        said += f", the token in its place {cosines.diagonal().mean().item():.3f}"
    return said


def _with_eager_attention(backbone: "Backbone") -> "Backbone":
    """Return the model with eager attention, which returns its weights."""
    from foreword.backbone import Backbone

    backbone.model.set_attn_implementation("eager")
    return Backbone(backbone.model, backbone.tokenizer, name=backbone.name)
