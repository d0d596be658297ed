"""API reference: the routes of an application as a page, made from its own OpenAPI description.

In: the description. Out: HTML that needs no script and nothing from elsewhere. Knows no handler.
"""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>foreword: API</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="/favicon.ico" type="image/svg+xml">
<link rel="stylesheet" href="/page.css">
</head>
<body>
<header>
  <h1>foreword {version}</h1>
  <p>OpenAI's API: every prompt is a model. The same as <a href="/openapi.json">OpenAPI</a>.</p>
</header>
<main>
{sections}
</main>
</body>
</html>
"""


def page_of(description: Mapping[str, Any]) -> str:
    """Return the page of an OpenAPI description."""
    sections = "\n".join(
        _section(method, path, route, description)
        for path, methods in description["paths"].items()
        for method, route in methods.items()
    )
    return PAGE.format(version=escape(description["info"]["version"]), sections=sections)


def _section(
    method: str, path: str, route: Mapping[str, Any], description: Mapping[str, Any]
) -> str:
    said = route.get("description") or route.get("summary") or ""
    rows = "".join(_row(*field) for field in _fields(route, description))
    head = "<thead><tr><th>field</th><th>type</th><th>default</th></tr></thead>"
    table = f"<table>{head}<tbody>{rows}</tbody></table>" if rows else ""
    return (
        f"<section><h2>{escape(method.upper())} {escape(path)}</h2>"
        f"<p>{escape(said)}</p>{table}</section>"
    )


def _row(name: str, kind: str, default: str) -> str:
    cells = zip(("field", "type", "default"), (name, kind, default), strict=True)
    inner = "".join(f'<td data-name="{of}">{escape(cell)}</td>' for of, cell in cells)
    return f"<tr>{inner}</tr>"


def _fields(
    route: Mapping[str, Any], description: Mapping[str, Any]
) -> Iterator[tuple[str, str, str]]:
    """Yield name, type and default of each field of a route's body."""
    for content in route.get("requestBody", {}).get("content", {}).values():
        schema = _resolved(content.get("schema", {}), description)
        required = schema.get("required", ())
        for name, field in schema.get("properties", {}).items():
            default = "required" if name in required else str(field.get("default", "none"))
            yield name, _kind(field), default


def _resolved(schema: Mapping[str, Any], description: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" not in schema:
        return schema
    found: Any = description
    for part in schema["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return dict(found)


def _kind(field: Mapping[str, Any]) -> str:
    """Return a field's type in words."""
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    if "const" in field or "enum" in field:
        return " or ".join(map(repr, field.get("enum", [field.get("const")])))
    if several := field.get("anyOf") or field.get("oneOf"):
        return " or ".join(dict.fromkeys(_kind(one) for one in several))
    kind = str(field.get("type", "any"))
    return f"{kind} of {_kind(field['items'])}" if "items" in field else kind
