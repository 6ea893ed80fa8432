"""Chat templates do no harm, whoever wrote them: limits, sandbox, processes."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmx.core import errors
from lmx.inputs import chat

HELLO = [{"role": "user", "content": "Hello"}]
PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
ENDLESS = (
    "{% for i in range(99999) %}{% for j in range(99999) %}"
    "{% endfor %}{% endfor %}{{ messages[0].content }}"
)


@pytest.fixture(scope="module")
def template_of():
    """Returns the template of a source; each has one process for all tests."""
    templates = {}

    def get(source):
        if source not in templates:
            templates[source] = chat.ChatTemplate(
                source, bos_token="<s>", eos_token="</s>", name=source
            )
        return templates[source]

    yield get
    for template in templates.values():
        template.close()


@settings(max_examples=50)
@given(content=st.text(alphabet=st.characters(exclude_categories=()), max_size=30))
def test_content_arrives_unchanged(template_of, content):
    messages = [{"role": "user", "content": content}]
    assert template_of(PLAIN).render(messages) == "[user]" + content


def test_tokens_are_variables_only_where_the_tokenizer_has_them():
    source = "{{ bos_token }}|{{ eos_token is defined }}|{{ pad_token is defined }}"
    tokens = {"pad_token": ""}
    with chat.ChatTemplate(source, bos_token="<s>", extra_tokens=tokens) as template:
        assert template.render(HELLO) == "<s>|False|True"


BOMBS = {
    "loops": (ENDLESS, "1 s"),
    "range": ("{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
    "text": ("{{ 'a' * 10**10 }}", "256 MiB"),
    "doubling": (
        "{% set ns = namespace(x='a') %}{% for i in range(99) %}"
        "{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        "256 MiB",
    ),
    "width": ("{{ '%1000000000d' % 1 }}", "256 MiB"),
    "power": ("{{ 9 ** (9 ** 9) }}", "1 s"),
    "macros": (
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "maximum recursion depth",
    ),
    "brackets": ("{{ " + "(" * 9999 + "1" + ")" * 9999 + " }}", "recursion depth"),
    "output": (
        "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
        "100000 characters",
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused(name):
    source, reason = BOMBS[name]
    limits = chat.Limits(
        seconds=1.0, memory_bytes=256 * 2**20, output_characters=100_000
    )
    with (
        chat.ChatTemplate(source, name="bomb.jinja", limits=limits) as template,
        pytest.raises(errors.DataError) as caught,
    ):
        template.render(HELLO)
    assert "bomb.jinja" in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ lipsum.__globals__['os'].system('true') }}",
        "{{ ('' | attr('__class__')).mro() }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
        "{{ raise_exception.__globals__.sys.exit() }}",
        "{{ dict.__class__.__base__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ namespace.__mro__[1] }}",
        "{% set ns = namespace(__class__=1) %}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ messages.clear() }}",
        "{{ messages[0].update({}) }}",
    ],
)
def test_the_sandbox_keeps_python_out_of_reach(template_of, source):
    with pytest.raises(errors.DataError, match=r"unsafe|undefined|begin with '_'"):
        template_of(source).render(HELLO)


def test_a_template_speaks_for_itself_but_not_to_the_terminal(template_of):
    with pytest.raises(errors.UserError, match=r"no \\x1b\[31m way") as caught:
        template_of("{{ raise_exception('no \x1b[31m way') }}").render(HELLO)
    assert caught.value.exit_code == errors.USAGE
    with pytest.raises(errors.DataError, match="line 2: Expected an expression"):
        template_of("\n{% for %}").render(HELLO)
    with pytest.raises(errors.DataError, match="'this' is undefined"):
        template_of("{{ this.that() }}").render(HELLO)


def test_an_error_leaves_the_process_and_a_breach_replaces_it():
    source = (
        "{% if messages[0].content == 'bad' %}{{ raise_exception('bad') }}{% endif %}"
        "{% if messages[0].content == 'big' %}{{ 'a' * 10**10 }}{% endif %}ok"
    )
    with chat.ChatTemplate(source) as template:
        assert template.render(HELLO) == "ok"
        first = template._worker._process.pid
        with pytest.raises(errors.UserError, match="bad"):
            template.render([{"role": "user", "content": "bad"}])
        assert template.render(HELLO) == "ok"
        assert template._worker._process.pid == first
        with pytest.raises(errors.DataError, match="MiB"):
            template.render([{"role": "user", "content": "big"}])
        assert not running(first)
        assert template.render(HELLO) == "ok"
        os.kill(template._worker._process.pid, signal.SIGKILL)
        template._worker._process.wait()
        assert template.render(HELLO) == "ok"


@pytest.mark.parametrize("characters", [1, 3 << 20])
def test_a_process_that_stands_still_is_given_up_whatever_it_was_sent(characters):
    limits = chat.Limits(seconds=1.5)
    long = [{"role": "user", "content": "x" * characters}]
    with chat.ChatTemplate(PLAIN, limits=limits) as template:
        assert template.render(long) == f"[user]{'x' * characters}"
        still = template._worker._process.pid
        os.kill(still, signal.SIGSTOP)
        with pytest.raises(errors.DataError, match=r"not done after 1\.5 s"):
            template.render(long)
        assert not running(still)
        assert template.render(HELLO) == "[user]Hello"


def running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_process_ends_with_the_object():
    template = chat.ChatTemplate(PLAIN)
    template.render(HELLO)
    process = template._worker._process.pid
    assert running(process)
    del template
    gc.collect()
    assert not running(process)


def test_the_process_ends_with_the_program_which_never_imports_jinja2():
    program = (
        "import sys; from lmx.inputs import chat; t = chat.ChatTemplate('ok');"
        "print(t.render([{'role': 'user', 'content': ''}]));"
        "print('jinja2' in sys.modules, 'jax' in sys.modules);"
        "print(t._worker._process.pid)"
    )
    root = str(Path(chat.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    text, imported, process = done.stdout.splitlines()
    assert (text, imported, done.stderr) == ("ok", "False False", "")
    assert not running(int(process))


def test_an_interrupted_rendering_does_not_answer_the_next():
    class Interrupt(Exception):
        pass

    def interrupt(*_):
        raise Interrupt

    previous = signal.signal(signal.SIGUSR1, interrupt)
    source = "{% if messages | length > 1 %}" + ENDLESS + "{% endif %}ok"
    try:
        with chat.ChatTemplate(source) as template:
            template.render(HELLO)
            timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1))
            timer.start()
            with pytest.raises(Interrupt):
                template.render([*HELLO, *HELLO])
            timer.join()
            assert template.render(HELLO) == "ok"
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_threads_get_their_own_answers(template_of):
    def render(index):
        return template_of(PLAIN).render([{"role": "user", "content": str(index)}])

    template_of(PLAIN)
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(render, range(100)))
    assert answers == [f"[user]{index}" for index in range(100)]


def test_a_worker_that_lost_its_caller_runs_out_of_cpu_time():
    pytest.importorskip("resource")
    worker = chat._start()
    setup = {
        "source": ENDLESS,
        "seconds": 0,
        "memory_bytes": 2**29,
        "output_characters": 9,
    }
    request = {"messages": HELLO}
    lines = "".join(json.dumps(line) + "\n" for line in (setup, request)).encode()
    answer, _ = worker.communicate(lines, timeout=30)
    assert answer == b'{"ready": true}\n'
    assert worker.returncode == -signal.SIGXCPU
    assert "CPU time" in chat._cause(worker.returncode)


@pytest.mark.parametrize(
    ("messages", "where"),
    [
        ("Hello", "messages is a str"),
        ([], "no messages"),
        ([*HELLO, "Hello"], r"messages\[1\] is a str"),
        ([{"content": "Hello"}], r"messages\[0\] has no 'role'"),
        ([{"role": 1, "content": "Hello"}], r"messages\[0\] has no 'role'"),
        ([*HELLO, {"role": "user"}], r"messages\[1\] has no 'content'"),
        ([{"role": "user", "content": 3}], r"messages\[0\] has no 'content'"),
        (
            [{"role": "user", "content": [{"image": b"x"}]}],
            r"messages\[0\]\['content'\]\[0\]\['image'\] is bytes",
        ),
        ([{"role": "user", "content": "", "x": {1: 2}}], r"\['x'\] is a mapping with"),
    ],
)
def test_a_message_of_another_form_is_named(template_of, messages, where):
    with pytest.raises(errors.UserError, match=where):
        template_of(PLAIN).render(messages)


def test_a_variable_that_json_cannot_hold_is_named(template_of):
    endless: list = []
    endless.append(endless)
    for value, reason in ((object(), "x is object"), (endless, "too deeply")):
        with pytest.raises(errors.UserError, match=reason):
            template_of(PLAIN).render(HELLO, x=value)
    with pytest.raises(errors.UserError, match="JSON cannot hold"):
        template_of(PLAIN).render(HELLO, x=10**5000)
