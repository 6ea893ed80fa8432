"""Chat templates: a conversation → the text of the prompt that a model was trained on.

A published model says in a Jinja program how its conversations are written. This
module renders one, byte for byte as the model's own tools do. The program comes from
strangers, so it runs in a process apart (`chat_worker.py`) with little memory and
little time, never here. This module makes no tokens and knows no model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from lmx.core import errors

START_SECONDS = 60.0  # of a new process, on a machine that is busy
KEPT_VARIABLES = ("TZ", "TZDIR", "LANG", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
READ_BYTES = 1 << 16
REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one rendering may use; a sound template needs a thousandth of it."""

    seconds: float = 5.0
    memory_bytes: int = 512 * 2**20  # of the whole process, jinja2 included
    output_characters: int = 4 * 2**20


DEFAULT_LIMITS = Limits()


class ChatTemplate:
    """Renders conversations with one template; safe to share between threads.

    Its process starts at the first rendering and ends with `close`, with the object, or
    with the program; after `close` the next rendering starts another.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str = "",
        eos_token: str = "",
        extra_tokens: Mapping[str, str] = {},
        name: str = "",
        limits: Limits = DEFAULT_LIMITS,
    ):
        """Keeps the text of a template; it is read at the first rendering.

        An empty bos_token or eos_token is one that the tokenizer does not have: the
        template finds it undefined. `extra_tokens` are more such variables
        (`pad_token`, …), defined even where empty. `name` stands for the template in
        error messages, a path for instance.
        """
        self.source = source
        tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._tokens = {key: text for key, text in tokens.items() if text}
        self._tokens.update(extra_tokens)
        self._title = f"the chat template {name or _excerpt(source)!r}"
        self._limits = limits
        self._worker = _Worker(source, limits)
        # At the end of the program too, before pipes and threads are torn down.
        self._finalizer = weakref.finalize(self, self._worker.stop)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """Returns the prompt of a conversation.

        A message has a 'role' and a 'content': text, or a list of parts for a template
        that takes them; one with 'tool_calls' may have no content. Keys whose value is
        None are dropped. `variables` (tools, documents, enable_thinking, …) are what
        JSON can hold; tuples become lists.

        Raises a `UserError` for messages or variables that are not of this form, or
        that the template itself refuses; a `DataError` for a template that is broken,
        does what is forbidden, or exceeds its limits.
        """
        plain: dict[str, Any] = {"tools": None, "documents": None, **self._tokens}
        plain.update({key: _plain(value, key) for key, value in variables.items()})
        plain["messages"] = _checked(messages)
        plain["add_generation_prompt"] = bool(add_generation_prompt)
        try:
            request = _line(plain)
        except ValueError as error:  # an integer of thousands of digits
            raise errors.UserError(
                f"JSON cannot hold what {self._title} is given: {error}"
            ) from error
        try:
            return self._text(self._worker.ask(request))
        except _Stopped as stopped:
            raise errors.DataError(f"{self._title} {stopped}") from None

    def close(self) -> None:
        """Ends the process, if there is one."""
        self._worker.stop()

    def __enter__(self) -> ChatTemplate:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _text(self, answer: Mapping[str, Any]) -> str:
        """Returns the text of an answer of the worker, or raises what it tells of."""
        if "text" in answer:
            return answer["text"]
        if "refused" in answer:
            raise errors.UserError(
                f"{self._title} refuses these messages: "
                f"{_printable(answer['refused'])}; change the messages to what it asks"
            )
        if "error" in answer:
            raise errors.DataError(
                f"{self._title} cannot be rendered: {_printable(answer['error'])}; "
                "correct the template, or give the variables that it uses"
            )
        self.close()  # memory it could not get leaves a process in an unknown state
        if answer.get("limit") == "output":
            raise errors.DataError(
                f"{self._title} wrote more than {self._limits.output_characters} "
                "characters; shorten the messages, or use another template"
            )
        raise errors.DataError(
            f"{self._title} needed more than {self._limits.memory_bytes >> 20} MiB of "
            "memory; use another template"
        )


class _Stopped(Exception):
    """The worker gave no answer; the message says why."""


class _Worker:
    """One process for one template: started when asked, and again after a stop."""

    def __init__(self, source: str, limits: Limits):
        self._setup = _line({"source": source, **dataclasses.asdict(limits)})
        self._limits = limits
        # A control character is six bytes of JSON, any other at most four.
        self._answer_bytes = 6 * limits.output_characters + 2**16
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._lock = threading.Lock()

    def ask(self, request: bytes) -> dict[str, Any]:
        """Returns the answer to one request.

        Raises `_Stopped` when there is none in time; the process is then gone, as it
        is after an interrupt, whose late answer would be taken for the next one's.
        """
        with self._lock:
            try:
                process = self._running()
                return self._exchange(process, request, self._limits.seconds)
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """Ends the process; does nothing where there is none."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return  # in a forked child, the process is its parent's
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # what was not sent is lost
                pipe.close()

    def _running(self) -> subprocess.Popen[bytes]:
        process = self._process
        if process and self._owner == os.getpid() and process.poll() is None:
            return process
        self.stop()
        self._process = process = _start()
        self._owner = os.getpid()
        self._exchange(process, self._setup, START_SECONDS)
        return process

    def _exchange(
        self, process: subprocess.Popen[bytes], line: bytes, seconds: float
    ) -> dict[str, Any]:
        """Sends a line and returns the one that answers it, within `seconds`."""
        deadline = time.monotonic() + seconds
        try:
            _send(process.stdin, line, deadline)
            answer = _receive(process.stdout, deadline, most=self._answer_bytes)
        except TimeoutError:
            raise _Stopped(
                f"was not done after {seconds:g} s and was stopped; a sound one takes "
                "milliseconds: use another template"
            ) from None
        if answer.endswith(b"\n"):
            return json.loads(answer.decode("utf-8", "surrogatepass"))
        if answer:
            raise _Stopped(f"answered more than {self._answer_bytes} bytes")
        raise _Stopped(_cause(process.wait()))


def _send(pipe: IO[bytes] | None, content: bytes, deadline: float) -> None:
    """Writes to a pipe that does not block; raises TimeoutError past the deadline."""
    assert pipe is not None
    left = memoryview(content)
    while left:
        _wait(pipe, select.POLLOUT, deadline)
        try:
            left = left[os.write(pipe.fileno(), left) :]
        except BlockingIOError:  # less room than a whole write needs
            continue
        except OSError:  # it ended before it had read all
            return


def _receive(pipe: IO[bytes] | None, deadline: float, *, most: int) -> bytes:
    """Returns a line, or less where the pipe ends or the line has `most` bytes."""
    assert pipe is not None
    answer = bytearray()
    while not answer.endswith(b"\n") and len(answer) < most:
        _wait(pipe, select.POLLIN, deadline)
        chunk = os.read(pipe.fileno(), READ_BYTES)
        if not chunk:
            return b""
        answer += chunk
    return bytes(answer)


def _wait(pipe: IO[bytes], event: int, deadline: float) -> None:
    """Returns once a pipe can be used, or has ended."""
    poll = select.poll()
    poll.register(pipe, event)
    left = max(0.0, deadline - time.monotonic())
    if not poll.poll(math.ceil(1000 * left)):
        raise TimeoutError


def _cause(code: int) -> str:
    """Says why the process of a template ended by itself."""
    if code == -getattr(signal, "SIGXCPU", 0):
        return "used more CPU time than allowed and was stopped; use another template"
    return (
        f"ended its process (exit code {code}); check that `python -c 'import jinja2'` "
        "works here, or use another template"
    )


def _start() -> subprocess.Popen[bytes]:
    """Starts the worker program, apart from all that this process can reach."""
    program = Path(__file__).with_name("chat_worker.py")
    command = [sys.executable, "-I", "-S", str(program)]
    for module in ("jinja2", "markupsafe"):
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise errors.UserError(
                f"a chat template needs {module}, which is not installed; "
                f"`pip install {module}`"
            )
        command.append(str(Path(spec.origin).parent.parent))
    kept = {key: os.environ[key] for key in KEPT_VARIABLES if key in os.environ}
    try:
        # Without a preexec_fn no Python runs between fork and exec, where JAX's
        # threads would hold their locks for ever.
        process = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=kept,  # no passwords and tokens
            start_new_session=True,  # Ctrl-C is for the caller
        )
    except OSError as error:
        raise errors.UserError(
            f"cannot start {sys.executable!r} to render a chat template: {error}; "
            "free some memory or processes"
        ) from error
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        os.set_blocking(pipe.fileno(), False)  # who waits here looks at the clock
    return process


def _checked(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the messages as plain data; raises a `UserError` for one that is not."""
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise errors.UserError(
            f"messages is a {type(messages).__name__}; give a list of messages such as "
            "{'role': 'user', 'content': 'Hello'}"
        )
    if not messages:
        raise errors.UserError("there are no messages; give at least one")
    return [_message(message, index) for index, message in enumerate(messages)]


def _message(message: Mapping[str, Any], index: int) -> dict[str, Any]:
    where = f"messages[{index}]"
    example = "give one such as {'role': 'user', 'content': 'Hello'}"
    if not isinstance(message, Mapping):
        raise errors.UserError(f"{where} is a {type(message).__name__}; {example}")
    # As clients send it: no 'tool_calls' is often written as a null.
    kept = {key: value for key, value in message.items() if value is not None}
    if not isinstance(kept.get("role"), str):
        raise errors.UserError(f"{where} has no 'role' that is text; {example}")
    content = kept.get("content")
    calls_only = content is None and "tool_calls" in kept
    if not (calls_only or isinstance(content, str | list | tuple)):
        raise errors.UserError(
            f"{where} has no 'content' that is text or a list of parts; {example}"
        )
    return _with_reasoning(_plain(kept, where))


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """Gives a message's reasoning the two names that templates read it under."""
    found = [message[key] for key in REASONING if message.get(key) is not None]
    if not found:
        return message
    # The order of the keys shows where a template writes the message as JSON.
    return {"thinking": found[0]} | message | {"reasoning_content": found[0]}


def _plain(value: Any, where: str) -> Any:
    """Returns `value` as JSON can hold it; raises a `UserError` that says where not."""
    if value is None or isinstance(value, str | int | float):
        return value
    try:
        if isinstance(value, list | tuple):
            return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {key: _plain(value[key], f"{where}[{key!r}]") for key in value}
    except RecursionError:
        raise errors.UserError(
            f"{where[:80]} is nested too deeply for a chat template; flatten it"
        ) from None
    what = "a mapping with keys that are not text" if isinstance(value, Mapping) else ""
    raise errors.UserError(
        f"{where} is {what or type(value).__name__}; a chat template takes only text, "
        "numbers, booleans, None, and lists and mappings of them: convert it"
    )


def _line(content: Mapping[str, Any]) -> bytes:
    # Two surrogates stay two: escaped, JSON would read them as one character.
    text = json.dumps(content, ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass") + b"\n"


def _excerpt(source: str) -> str:
    return source if len(source) <= 40 else f"{source[:37]}..."


def _printable(message: str) -> str:
    """Escapes what could command a terminal: the words are the template's."""
    return "".join(
        character
        if character.isprintable() or character == "\n"
        else character.encode("unicode_escape").decode()
        for character in message
    )
