"""The program that renders one chat template, in a process of its own.

It is started by `lmx.inputs.chat` and never imported: a template is a program that a
stranger wrote, and the sandbox stops it from reading, not from looping or from filling
the memory. It needs only jinja2 and the standard library. It reads JSON lines: first
what to render and within which limits, then one object of variables per rendering. It
answers each with one JSON line that holds one of these:

    ready    the template was received (not yet read)
    text     the rendering
    refused  the message of a `raise_exception` in the template
    error    why the template cannot be rendered
    limit    "memory" or "output", whichever was exceeded
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.extend(sys.argv[1:])  # where jinja2 is; after the standard library

import datetime
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils

try:
    import resource
except ImportError:  # the caller's clock and the cap on the output remain
    resource = None  # type: ignore[assignment]

MESSAGE_CHARACTERS = 2000  # of an error that the template words itself


class Refused(jinja2.TemplateError):
    """The template called `raise_exception`: these messages do not fit it."""


class OutputLimitError(Exception):
    """The rendering is longer than allowed."""


class Generation(jinja2.ext.Extension):
    """`{% generation %}`: marks what the model says, and renders as its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


class Namespace(jinja2.utils.Namespace):
    """jinja2's `namespace`, without names that begin with an underscore."""

    def __init__(*args: Any, **values: Any) -> None:
        self, *rest = args
        attributes = dict(*rest, **values)
        for name in attributes:
            _refuse_private(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


class MakeDict:
    """What a template calls as `dict(...)`: the function without the type."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(
            f"a namespace cannot hold {name!r}: names must not begin with '_'"
        )


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Returns plain JSON; jinja2's own filter would escape it for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: Any) -> None:
    raise Refused(message)


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


def make_environment() -> jinja2.Environment:
    """Returns the environment that published chat templates are written for."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=_strftime_now,
        dict=MakeDict(),
        namespace=Namespace,
    )
    return environment


def limit_process(memory_bytes: int) -> None:
    """Caps the address space, and forbids files, core dumps and new processes."""
    if resource is None:
        return
    wanted = {"AS": memory_bytes, "FSIZE": 0, "CORE": 0, "NPROC": 0}
    for name, value in wanted.items():
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is None:
            continue
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError):  # macOS has the constant and not the limit
            continue


def limit_cpu(seconds: float) -> None:
    """Lets the process use `seconds` more of CPU; then the system ends it.

    The caller's clock strikes first, unless the caller itself was killed.
    """
    if resource is None:
        return
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = math.ceil(used + seconds) + 1
    soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _capped(pieces: Iterable[str], limit: int) -> Iterator[str]:
    length = 0
    for piece in pieces:
        length += len(piece)
        if length > limit:
            raise OutputLimitError
        yield piece


class Renderer:
    """Renders one template, which is read at the first rendering."""

    def __init__(self, source: str, output_characters: int):
        self._environment = make_environment()
        self._source = source
        self._output_characters = output_characters
        self._template: jinja2.Template | None = None

    def answer(self, variables: dict[str, Any]) -> dict[str, str]:
        """Returns the answer for one object of variables; raises only MemoryError."""
        try:
            if self._template is None:
                self._template = self._environment.from_string(self._source)
            pieces = self._template.generate(variables)
            return {"text": "".join(_capped(pieces, self._output_characters))}
        except OutputLimitError:
            return {"limit": "output"}
        except Refused as error:
            return {"refused": _clipped(error.message)}
        except jinja2.TemplateSyntaxError as error:
            return {"error": _clipped(f"line {error.lineno}: {error.message}")}
        except jinja2.TemplateError as error:
            return {"error": _clipped(error.message)}
        except MemoryError:
            raise
        except Exception as error:  # a template can raise whatever Python raises
            return {"error": _clipped(f"{type(error).__name__}: {error}")}


def _clipped(message: Any) -> str:
    return str(message)[:MESSAGE_CHARACTERS]


def _line(answer: dict[str, Any]) -> bytes:
    text = json.dumps(answer, ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass") + b"\n"


def _read(line: bytes) -> Any:
    # Not "replace": a lone surrogate is the caller's to refuse, or to see unchanged.
    return json.loads(line.decode("utf-8", "surrogatepass"))


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answers requests until there are no more."""
    setup = _read(requests.readline())
    renderer = Renderer(setup["source"], setup["output_characters"])
    limit_process(setup["memory_bytes"])
    answers.write(_line({"ready": True}))
    answers.flush()
    out_of_memory = _line({"limit": "memory"})  # made while there is some
    while request := requests.readline():
        limit_cpu(setup["seconds"])
        try:
            answer = _line(renderer.answer(_read(request)))
        except MemoryError:
            answer = out_of_memory
        answers.write(answer)
        answers.flush()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
