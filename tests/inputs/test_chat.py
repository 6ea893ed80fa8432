"""Templates in the styles of published families render as in transformers."""

from __future__ import annotations

import contextlib
import functools
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmx.core import errors
from lmx.inputs import chat

HELLO = [{"role": "user", "content": "Hello"}]
CHATML = """
{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
QWEN = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1, asked=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.asked and message.role == "user" and message.content is string %}
        {%- set ns.asked = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n') %}
            {%- set thought = thought.split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if thought and loop.index0 > ns.last %}
            {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content }}
        {%- for call in message.tool_calls or [] %}
            {%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- '<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments|tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or loop.previtem.role != "tool" %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != "tool" %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% set system = messages[0]['content'] %}{% else %}{% set rest = messages %}"
    "{% set system = false %}{% endif %}{% for message in rest %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant/user/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system != false %}{% set content = '<<SYS>>\\n' + "
    "system + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}"
    "{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = """
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- for t in tools or [] %}
    {{- t | tojson(indent=4) }}
    {{- "\\n\\n" }}
{%- endfor %}
{{- system }}{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role in ['ipython', 'tool'] or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only calls one tool at once!") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson(separators=(',', ':'), sort_keys=true) }}
        {{- "}<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {{- message.content | tojson(ensure_ascii=true) }}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
MISTRAL = """
{%- if messages[0]["role"] == "system" %}
    {%- set system = messages[0]["content"] %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set rest = messages %}
{%- endif %}
{%- set users = rest | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in rest %}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("After the optional system message, roles alternate!") }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if message == users[-1] and system is defined %}
            {{- "[INST] " + system + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- endif %}
{%- endfor %}
"""
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + "
    "'<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
PHI3 = """{% for message in messages %}
  {% if message.role not in ['system', 'user', 'assistant'] %}
    {% continue %}
  {% endif %}
<|{{ message.role }}|>
{{ message.content }}<|end|>
{% endfor %}
{# the end of text where nothing follows #}
{% if add_generation_prompt %}<|assistant|>
{% else %}{{ eos_token }}{% endif %}
"""
OLMO = """{{ bos_token }}{% for message in messages %}
{%- if message.role == 'assistant' %}
<|assistant|>
{% generation %}{% set words = message.content %}{{ words }}{% if not loop.last %}
{{ eos_token }}{% endif %}
{% endgeneration %}{{ words is defined }}
{%- else %}
<|{{ message.role }}|>
{{ message.content }}
{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""
ZEPHYR = """{% macro turn(message) %}<|{{ message['role'] }}|>
{{ message['content'] + eos_token }}
{% endmacro %}
{% for message in messages %}
{% if loop.index > 9 %}{% break %}{% endif %}
{{ turn(message) }}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
FAMILIES = {
    "smollm": CHATML,
    "qwen": QWEN,
    "llama2": LLAMA2,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "phi3": PHI3,
    "olmo": OLMO,
    "zephyr": ZEPHYR,
}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'The weather <now> in a city\'s "centre" & around it: é',
            "parameters": {"type": "object", "required": ["city"], "n": [1, 0.5, None]},
        },
    }
]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"b": "ü"}}}
CONVERSATIONS = {
    "one turn": HELLO,
    "system": [{"role": "system", "content": " Be brief. "}, *HELLO],
    "turns": [
        *HELLO,
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHi {{ x }} {% y %}"},
        {"role": "user", "content": '  <b>it\'s</b>\n"quoted" \\n 😀\u2028{# no #}\n'},
    ],
    "reasoning": [*HELLO, {"role": "assistant", "thinking": "hm", "content": "Hi"}],
    "tools": [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "12 °C"},
        {"role": "tool", "content": "13 °C"},
    ],
    "two users": [*HELLO, *HELLO],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
}


@pytest.fixture(scope="module")
def reference():
    """Returns `apply_chat_template` of a tokenizer of transformers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, "?"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>"
    )

    def render(source, messages, **variables):
        return tokenizer.apply_chat_template(
            messages, chat_template=source, tokenize=False, **variables
        )

    return render


@pytest.fixture(scope="module")
def family():
    """Returns the template of a family; each has one process for all tests."""
    with contextlib.ExitStack() as opened:

        @functools.cache
        def get(name):
            tokens = {"bos_token": "<s>", "eos_token": "</s>"}
            template = chat.ChatTemplate(FAMILIES.get(name, name), name=name, **tokens)
            return opened.enter_context(template)

        yield get


def outcome(render, *args, **variables):
    """Returns what was rendered and what was raised, one of them None."""
    try:
        return render(*args, **variables), None
    except Exception as error:  # what jinja2 raises, and what the template does
        return None, error


def assert_same(reference, template, messages, **variables):
    """Holds that both render the same text, or refuse in the same words."""
    wanted, refusal = outcome(reference, template.source, messages, **variables)
    text, error = outcome(template.render, messages, **variables)
    assert text == wanted
    assert isinstance(error, errors.UserError) == (refusal is not None)
    assert str(refusal or "") in str(error)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_families_render_as_in_transformers(reference, family, name, conversation):
    messages = CONVERSATIONS[conversation]
    for variables in (
        {"add_generation_prompt": True},
        {"add_generation_prompt": False, "tools": TOOLS},
        {"add_generation_prompt": True, "enable_thinking": False, "bos_token": "B"},
    ):
        # The date that llama3 writes is a variable here; midnight may come between.
        assert_same(
            reference, family(name), messages, date_string="1 May 2024", **variables
        )


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages | tojson }}",
        "{{ messages | tojson(indent=2, ensure_ascii=True) }}",
        "{{ '<&>\\'' | tojson }}{{ '<&>' }}{{ '<&>' | e }}",
        "{{ tools is none }} {{ documents is none }} {{ pad_token is defined }}",
        "{{ strftime_now('%Y, %B') }}{{ dict(a=1) }}{{ dict.fromkeys('ab', 1) }}",
        "{% set x = namespace(self=1, n=0) %}{% set x.n = 2 %}{{ x.n }}{{ x.self }}",
        "{{ extra }} {{ extra.deep[1] }} {{ extra.n / 3 }} {{ extra.big }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__ }}|{{ x }}|{{ [1.0, true, none] }}",
        "{% break %}",
        "\n  {% if true %}  \n a\n  {% endif %}\n\n",
        "{%- for m in messages %}{{ m }}{{ m.items() | list }}{% endfor %}",
        "{% generation %}a{% generation %}b{% endgeneration %}{% endgeneration %}\nc",
        "{{ missing.attribute }}",
        "{{ 'a' + missing }}",
        "{{ 1 / 0 }}",
        "{% include 'x' %}",
    ],
)
def test_features_render_as_in_transformers(reference, family, source):
    extra = {"deep": [1, {"é": None}], "n": 2.5, "big": 10**30, "inf": float("inf")}
    messages = [{"role": "user", "reasoning": "r", "name": None, "content": "é<'\"\n"}]
    assert_same(reference, family(source), messages, extra=extra)


def test_syntax_errors_are_those_of_transformers(reference):
    for source in (
        "{% for %}",
        "{{ 'a }}",
        "{% endif %}",
        "{% generation %}",
        "{{ |x }}",
    ):
        with chat.ChatTemplate(source) as template:
            assert_same(reference, template, HELLO)


TEXTS = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="{}%#-|<>'\"\\\n\t &a\u2028\x00é😀 ", max_size=40),
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "assistant", "system", "tool"]),
            "content": TEXTS,
        },
        optional={"reasoning_content": TEXTS},
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=150)
@given(name=st.sampled_from(sorted(FAMILIES)), messages=MESSAGES, prompt=st.booleans())
def test_any_conversation_renders_as_in_transformers(
    reference, family, name, messages, prompt
):
    assert_same(
        reference,
        family(name),
        messages,
        add_generation_prompt=prompt,
        date_string="today",
    )
