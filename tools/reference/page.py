"""The OpenAPI document as a page for people: one file with its style inside, no script, and nothing to load."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from chatstate.http.problems import STATUS
from tools.reference.openapi import messages, phrase

Json = dict[str, Any]

_PAGE = Template((files(__package__) / "page.html").read_text("utf-8"))
_STYLE = (files(__package__) / "page.css").read_text("utf-8")


def page(spec: Json) -> str:
    """An OpenAPI document of ours as HTML. Its first server is the address that the curl lines call."""
    operations = [
        (method.upper(), path, operation)
        for path, methods in spec["paths"].items()
        for method, operation in methods.items()
    ]
    bodies = {_body(spec, operation).get("title") for _, _, operation in operations}
    shapes = (schema for name, schema in spec["components"]["schemas"].items() if name not in bodies)
    return _PAGE.substitute(
        style=_STYLE,
        version=escape(spec["info"]["version"]),
        summary=_text(spec["info"]["summary"]),
        description="".join(f"<p>{_text(part)}</p>" for part in spec["info"]["description"].split("\n\n")),
        contents="".join(_contents(*operation) for operation in operations),
        groups="".join(_group(spec, tag, operations) for tag in spec["tags"]),
        shapes="".join(_shape(schema) for schema in shapes),
        errors="".join(_error_row(code, message) for code, message in messages().items()),
    )


def _contents(method: str, path: str, operation: Json) -> str:
    return f'<li><a href="#{operation["operationId"]}">{_method(method)} <span>{_path(path)}</span></a></li>\n'


def _group(spec: Json, tag: Json, operations: Iterable[tuple[str, str, Json]]) -> str:
    articles = "".join(_operation(spec, *operation) for operation in operations if tag["name"] in operation[2]["tags"])
    return f"<section>\n<h2>{_text(tag['name'])}</h2>\n<p>{_text(tag['description'])}</p>\n{articles}</section>\n"


def _operation(spec: Json, method: str, path: str, operation: Json) -> str:
    body = _body(spec, operation)
    request = _parameters(spec, operation, "path") + _members(body) + _parameters(spec, operation, "header")
    answers = "".join(_answer(int(status), answer) for status, answer in operation["responses"].items())
    name = operation["operationId"]
    return (
        f'<article aria-labelledby="{name}">\n<h3 id="{name}">{_method(method)} <code>{_path(path)}</code></h3>\n'
        f"<p>{_text(operation['summary'])}</p>\n{_code(_curl(spec, method, path, body))}\n"
        + (f"<h4>Request</h4>\n<dl>{request}</dl>\n" if request else "")
        + f'<h4>Answers</h4>\n<dl class="answers">{answers}</dl>\n</article>\n'
    )


def _parameters(spec: Json, operation: Json, place: str) -> str:
    return "".join(
        _member(found["name"], f"{place}, {_kind(found['schema'])}", found["description"], "required" in found)
        for found in (_resolve(spec, parameter) for parameter in operation["parameters"])
        if found["in"] == place
    )


def _curl(spec: Json, method: str, path: str, body: Json) -> str:
    for parameter in spec["components"]["parameters"].values():
        path = path.replace(f"{{{parameter['name']}}}", str(parameter["schema"].get("examples", [""])[0]))
    line = "curl " + (f"-X {method} " if method != "GET" else "") + shlex.quote(spec["servers"][0]["url"] + path)
    if not body:
        return line
    example = shlex.quote(json.dumps(body["examples"][0], indent=2))
    return f"{line} \\\n  -H 'Content-Type: application/json' \\\n  -d {example}"


def _answer(status: int, answer: Json) -> str:
    content: Json = next(iter(answer.get("content", {}).values()), {})
    shape = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
    text = _text(answer["description"])
    for code in content.get("examples", ()):
        text = text.replace(f"<code>{code}</code>", f'<a href="#{code}"><code>{code}</code></a>')
    if shape and status < 400:
        text += f' Body: <a href="#{shape}"><code>{shape}</code></a>.'
    if answer["headers"]:
        text += " Headers: " + ", ".join(f"<code>{escape(name)}</code>" for name in answer["headers"]) + "."
    return f"<dt>{status}</dt><dd>{text}</dd>\n"


def _shape(schema: Json) -> str:
    title = escape(schema["title"])
    example = _code(json.dumps(schema["examples"][0], indent=2)) if "examples" in schema else ""
    return (
        f'<article aria-labelledby="{title}">\n<h3 id="{title}"><code>{title}</code></h3>\n'
        f"<p>{_text(schema['description'])}</p>\n<dl>{_members(schema)}</dl>\n{example}</article>\n"
    )


def _members(schema: Json) -> str:
    required = schema.get("required", ())
    return "".join(
        _member(name, _kind(member), member.get("description", ""), name in required)
        for name, member in schema.get("properties", {}).items()
    )


def _member(name: str, kind: str, description: str, required: bool) -> str:
    kind += "" if required else ", optional"
    return f"<dt><code>{escape(name)}</code> <small>{escape(kind)}</small></dt><dd>{_text(description)}</dd>\n"


def _kind(schema: Json) -> str:
    """A schema's type in words, such as 'string, 1 to 255 characters'."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return ", ".join(_kind(choice) for choice in schema["anyOf"][:-1]) + f" or {_kind(schema['anyOf'][-1])}"
    if "items" in schema:
        return f"array of {_kind(schema['items'])}"
    if "enum" in schema:
        return " or ".join(json.dumps(value) for value in schema["enum"])
    types = schema.get("type", "any")
    words = types if isinstance(types, str) else " or ".join(types)
    words += f" ({schema['format']})" if "format" in schema else ""
    return words + (f", {schema['minLength']} to {schema['maxLength']} characters" if "maxLength" in schema else "")


def _error_row(code: str, message: str) -> str:
    status = f"{STATUS[code]} {phrase(STATUS[code])}"
    return f'<tr id="{code}"><th scope="row"><code>{code}</code></th><td>{status}</td><td>{_text(message)}</td></tr>\n'


def _body(spec: Json, operation: Json) -> Json:
    """The schema of an operation's body; empty when it takes none."""
    content = operation.get("requestBody", {}).get("content", {})
    return _resolve(spec, content["application/json"]["schema"]) if content else {}


def _resolve(spec: Json, reference: Mapping[str, str]) -> Json:
    _, _, kind, name = reference["$ref"].split("/")
    found: Json = spec["components"][kind][name]
    return found


def _method(method: str) -> str:
    return f'<span class="method {method.lower()}">{method}</span>'


def _path(path: str) -> str:
    """A path that may be broken into lines after each slash."""
    return escape(path).replace("/", "/<wbr>").replace("/<wbr>", "/", 1)


def _text(markdown: str) -> str:
    """Escaped, with `code` between backticks."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(markdown))


def _code(text: str) -> str:
    return f'<pre tabindex="0"><code>{escape(text)}</code></pre>'
