"""The OpenAPI document as a page for people: one file with its style inside, no script, and nothing to load."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
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
    requests = {schema["title"] for *_, operation in operations for _, schema in _bodies(spec, operation)}
    shapes = (schema for name, schema in spec["components"]["schemas"].items() if name not in requests)
    return _PAGE.substitute(
        style=_STYLE,
        version=escape(spec["info"]["version"]),
        summary=_text(spec["info"]["summary"]),
        description="".join(f"<p>{_text(part)}</p>" for part in spec["info"]["description"].split("\n\n")),
        contents="".join(_contents(tag["name"], operations) for tag in spec["tags"]),
        groups="".join(_group(spec, tag, operations) for tag in spec["tags"]),
        shapes="".join(_shape(schema) for schema in shapes),
        request_headers="".join(_request_headers(spec)),
        answer_headers="".join(_answer_headers(spec, operations)),
        errors="".join(_error_row(code, message) for code, message in messages().items()),
    )


# --- Operations -------------------------------------------------------------------------------------------------------


def _contents(tag: str, operations: Iterable[tuple[str, str, Json]]) -> str:
    lines = "".join(
        f'<li><a href="#{operation["operationId"]}">{_method(method)} <span>{_path(path)}</span></a></li>\n'
        for method, path, operation in operations
        if tag in operation["tags"]
    )
    return f"<li>{escape(tag)}\n<ul>\n{lines}</ul></li>\n"


def _group(spec: Json, tag: Json, operations: Iterable[tuple[str, str, Json]]) -> str:
    articles = "".join(_operation(spec, *operation) for operation in operations if tag["name"] in operation[2]["tags"])
    return f"<section>\n<h2>{_text(tag['name'])}</h2>\n<p>{_text(tag['description'])}</p>\n{articles}</section>\n"


def _operation(spec: Json, method: str, path: str, operation: Json) -> str:
    request = "".join(_request(spec, operation))
    answers = "".join(_answer(int(status), answer) for status, answer in operation["responses"].items())
    lines = "\n".join(_code(line) for line in _curl_lines(spec, method, path, operation))
    name = operation["operationId"]
    return (
        f'<article aria-labelledby="{name}">\n<h3 id="{name}">{_method(method)} <code>{_path(path)}</code></h3>\n'
        f'<p>{_text(operation["summary"])}</p>\n<p class="credential">{_text(operation["description"])}</p>\n{lines}\n'
        + (f"<h4>Request</h4>\n<dl>{request}</dl>\n" if request else "")
        + f'<h4>Answers</h4>\n<dl class="answers">{answers}</dl>\n</article>\n'
    )


def _request(spec: Json, operation: Json) -> Iterator[str]:
    """The rows that say what the request holds."""
    parameters = [_resolve(spec, parameter) for parameter in operation["parameters"]]
    yield from (_parameter(found) for found in parameters if found["in"] == "path")
    for media_types, schema in _bodies(spec, operation):
        if "properties" in schema:
            yield _members(schema)
        else:
            yield _member(media_types[0], escape(f"body, {_kind(schema)}"), schema["description"], True)
        if "properties" in schema and len(media_types) > 1:
            yield _member("Content-Type", "header", " or ".join(f"`{name}`" for name in media_types), True)
    yield from (_parameter(found) for found in parameters if found["in"] == "query")
    headers = [found["name"] for found in parameters if found["in"] == "header"]
    if headers:
        links = _header_links("sent", headers)
        yield f'<dt class="headers">Headers <small>optional</small></dt><dd>{links}</dd>\n'


def _parameter(found: Json) -> str:
    kind = escape(f"{found['in']}, {_kind(found['schema'])}")
    return _member(found["name"], kind, found["description"], found.get("required", False))


def _curl_lines(spec: Json, method: str, path: str, operation: Json) -> Iterator[str]:
    """A line for each kind of body that the operation takes."""
    for parameter in spec["components"]["parameters"].values():
        path = path.replace(f"{{{parameter['name']}}}", str(parameter["schema"].get("examples", [""])[0]))
    unbuffered = "text/event-stream" in operation["responses"].get("200", {}).get("content", {})
    how = f"-X {method} " if method != "GET" else "-N " if unbuffered else ""
    line = f"curl {how}" + shlex.quote(spec["servers"][0]["url"] + path)
    bodies = _bodies(spec, operation)
    if not bodies:
        yield line
    for media_types, schema in bodies:
        example = shlex.quote(json.dumps(schema["examples"][0], indent=2))
        yield f"{line} \\\n  -H 'Content-Type: {media_types[0]}' \\\n  -d {example}"


def _answer(status: int, answer: Json) -> str:
    content: Json = next(iter(answer.get("content", {}).values()), {})
    text = _text(answer["description"])
    for code in content.get("examples", ()):
        text = text.replace(f"<code>{code}</code>", f'<a href="#{code}"><code>{code}</code></a>')
    if "schema" in content and status < 400:
        text += f" Body: {_linked_kind(content['schema'])}."
    if answer["headers"]:
        text += f" Headers: {_header_links('answered', answer['headers'])}."
    return f"<dt>{status}</dt><dd>{text}</dd>\n"


# --- What requests and answers hold -----------------------------------------------------------------------------------


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
        _member(name, _linked_kind(member), member.get("description", ""), name in required)
        for name, member in schema.get("properties", {}).items()
    )


def _member(name: str, kind: str, description: str, required: bool) -> str:
    kind += "" if required else ", optional"
    return f"<dt><code>{escape(name)}</code> <small>{kind}</small></dt><dd>{_text(description)}</dd>\n"


def _request_headers(spec: Json) -> Iterator[str]:
    for header in spec["components"]["parameters"].values():
        if header["in"] == "header":
            yield _header("sent", header["name"], header["description"])


def _answer_headers(spec: Json, operations: Iterable[tuple[str, str, Json]]) -> Iterator[str]:
    """Each header of the answers; what it means may depend on the answer."""
    meanings: dict[str, dict[str, None]] = {}
    for *_, operation in operations:
        for answer in operation["responses"].values():
            for name, header in answer["headers"].items():
                meanings.setdefault(name, {})[_resolve(spec, header)["description"]] = None
    yield from (_header("answered", name, " ".join(meaning)) for name, meaning in meanings.items())


def _header(kind: str, name: str, description: str) -> str:
    return f'<dt id="{kind}-{name.lower()}"><code>{escape(name)}</code></dt><dd>{_text(description)}</dd>\n'


def _header_links(kind: str, names: Iterable[str]) -> str:
    return ", ".join(f'<a href="#{kind}-{name.lower()}"><code>{escape(name)}</code></a>' for name in names)


def _error_row(code: str, message: str) -> str:
    status = f"{STATUS[code]} {phrase(STATUS[code])}"
    return f'<tr id="{code}"><th scope="row"><code>{code}</code></th><td>{status}</td><td>{_text(message)}</td></tr>\n'


# --- Schemas in words -------------------------------------------------------------------------------------------------


def _linked_kind(schema: Json) -> str:
    """The same as `_kind`, escaped, with a link to the shape that it names."""
    names = re.findall(r'"#/components/schemas/(\w+)"', json.dumps(schema))
    text = escape(_kind(schema))
    return text.replace(names[0], f'<a href="#{names[0]}"><code>{names[0]}</code></a>') if names else text


def _kind(schema: Json) -> str:
    """A schema's type in words, such as 'string, 1 to 255 characters'."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return ", ".join(_kind(choice) for choice in schema["anyOf"][:-1]) + f" or {_kind(schema['anyOf'][-1])}"
    if "items" in schema:
        most = f"at most {schema['maxItems']:,} " if "maxItems" in schema else ""
        return f"array of {most}{_kind(schema['items'])}"
    if "oneOf" in schema:
        return "objects"
    if "enum" in schema:
        return " or ".join(json.dumps(value) for value in schema["enum"])
    types = schema.get("type", "any JSON value")
    words = types if isinstance(types, str) else " or ".join(types)
    return words + "".join(_bounds(schema))


_NO_BOUND = (1 << 63) - 1
"""The largest number of the stores says nothing to people."""


def _bounds(schema: Json) -> Iterator[str]:
    if "format" in schema:
        yield f" ({schema['format']})"
    if "minLength" in schema and "maxLength" in schema:
        yield f", {schema['minLength']} to {schema['maxLength']} characters"
    elif "maxLength" in schema:
        yield f", at most {schema['maxLength']} characters"
    if schema.get("maximum", _NO_BOUND) < _NO_BOUND:
        yield f", {schema['minimum']:,} to {schema['maximum']:,}"
    elif "minimum" in schema:
        yield f", at least {schema['minimum']}"


# --- Parts of the document and of the page ----------------------------------------------------------------------------


def _bodies(spec: Json, operation: Json) -> list[tuple[list[str], Json]]:
    """The schemas of an operation's body, each with its media types; none when it takes no body."""
    found: dict[str, tuple[list[str], Json]] = {}
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        schema = _resolve(spec, content["schema"])
        found.setdefault(schema["title"], ([], schema))[0].append(media_type)
    return list(found.values())


def _resolve(spec: Json, reference: Mapping[str, str]) -> Json:
    _, kind, name = reference["$ref"].rsplit("/", 2)
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
