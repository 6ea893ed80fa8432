"""Which tokens of an example are learned; references are transformers and prefixes."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lmx.core.errors import DataError, UserError
from lmx.inputs.chat import ChatTemplate
from lmx.inputs.examples import (
    FORMATS,
    INFILL_SPECIALS,
    PLAIN_TEMPLATE,
    chat_template,
)
from lmx.inputs.tokenizers import Tokenizer, train_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The same text, with what transformers counts as the model's marked.
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
)
TEXTS = [
    "the user said: hello there\n",
    "and he answered, 'good day' ... it is\n\n",
] * 9
CONTENT = st.text(st.sampled_from("ab \n.é🙂:'"), min_size=1, max_size=9).map(
    lambda text: text + "a"
)
TURNS = st.lists(st.tuples(CONTENT, CONTENT, st.booleans()), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def tokenizer():
    names = ("<|im_start|>", "<|im_end|>", *INFILL_SPECIALS)
    return train_tokenizer("bpe", TEXTS, 320, extra=names)


@pytest.fixture(scope="module")
def chatml(tokenizer):
    with chat_template(tokenizer, CHATML) as template:
        yield template


@pytest.fixture(scope="module")
def plain(tokenizer):
    with chat_template(tokenizer) as template:
        yield template


def conversation(turns):
    messages = []
    for question, answer, counts in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
        if not counts:
            messages[-1]["weight"] = 0
    return messages


def encoder(name, tokenizer, template=None):
    return FORMATS[name].encoder(tokenizer, template)


def said(tokenizer: Tokenizer, example) -> list[list[int]]:
    """Returns each run of learned ids."""
    runs: list[list[int]] = [[]]
    for index, weight in zip(example.ids, example.weights, strict=True):
        if weight:
            runs[-1].append(index)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


@settings(deadline=None, max_examples=40)
@given(turns=TURNS)
def test_what_is_learned_is_each_reply_and_its_end(tokenizer, chatml, plain, turns):
    turns = [*turns, ("and now?", "now", True)]
    messages = conversation(turns)
    assert FORMATS["messages"].problem({"messages": messages}) is None
    for template, space in ((chatml, ""), (plain, " ")):
        (example,) = encoder("messages", tokenizer, template)({"messages": messages})
        end = tokenizer.eos_id
        if template is chatml:
            end = next(
                i for i, t in tokenizer.special_tokens.items() if "im_end" in t.content
            )
        expected = [space + answer for _, answer, counts in turns if counts]
        found = said(tokenizer, example)
        assert [run[-1] for run in found] == [end] * len(expected)
        assert [tokenizer.decode(run) for run in found] == expected
        assert example.size == len("".join(expected).encode())
        text = template.render(
            [{k: m[k] for k in ("role", "content")} for m in messages],
            add_generation_prompt=False,
        )
        assert tokenizer.decode(example.ids) == tokenizer.decode(
            tokenizer.encode_markup(text)
        )


@settings(deadline=None, max_examples=40)
@given(turns=TURNS)
def test_a_prompt_is_what_a_model_is_given_for_its_reply(tokenizer, chatml, turns):
    *_, (question, answer, _) = turns
    messages = conversation([(question, answer, True)])
    (example,) = encoder("messages", tokenizer, chatml)({"messages": messages})
    prompt = tokenizer.encode_markup(chatml.render(messages[:1]))
    first = example.weights.index(1)
    assert example.ids[:first] == prompt


@settings(deadline=None, max_examples=30)
@given(turns=TURNS)
def test_masks_equal_those_of_transformers(tokenizer, chatml, turns):
    transformers = pytest.importorskip("transformers")
    import tokenizers

    backend = tokenizers.Tokenizer.from_str(tokenizer.content)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    messages = conversation([(q, a.strip("\n"), True) for q, a, _ in turns])
    expected = theirs.apply_chat_template(
        messages,
        chat_template=MARKED,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    (example,) = encoder("messages", tokenizer, chatml)({"messages": messages})
    assume(list(example.ids) == expected["input_ids"])  # no token spans both
    assert list(example.weights) == expected["assistant_masks"]


def test_a_message_that_spells_a_special_token_is_learned_as_text(tokenizer, chatml):
    messages = conversation([("say <|im_end|>", "<|im_end|> it is", True)])
    (example,) = encoder("messages", tokenizer, chatml)({"messages": messages})
    (run,) = said(tokenizer, example)
    assert tokenizer.decode(run) == "<|im_end|> it is"
    assert sum(i in tokenizer.special_tokens for i in example.ids) == 4


def test_a_template_that_rewrites_a_turn_is_refused_for_it(tokenizer):
    source = CHATML.replace("{{ m.content }}", "{{ m.content if loop.last else '…' }}")
    messages = conversation([("a", "b", True), ("c", "d", True)])
    with ChatTemplate(source) as template:
        encode = encoder("messages", tokenizer, template)
        with pytest.raises(DataError, match=r"messages\[1\] in another way"):
            encode({"messages": messages})


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ("hello", "not a list"),
        ([], "not a list"),
        ([{"role": "user"}], "no role and content"),
        ([{"role": "user", "content": "a"}], "nothing is learned"),
        (conversation([("a", "b", False)]), "nothing is learned"),
        (conversation([("a", " \n", True)]), "nothing is learned"),
        ([{"role": "user", "content": "a", "weight": 1}], "only assistants"),
        ([{"role": "assistant", "content": "a", "weight": 0.5}], "not 0 or 1"),
    ],
)
def test_conversations_of_which_nothing_is_learned_are_named(messages, why):
    assert why in FORMATS["messages"].problem({"messages": messages})


@settings(deadline=None)
@given(prompt=CONTENT, completion=CONTENT)
def test_a_completion_is_learned_with_its_end(tokenizer, prompt, completion):
    record = {"prompt": prompt, "completion": completion}
    (example,) = encoder("prompt_completion", tokenizer)(record)
    (run,) = said(tokenizer, example)
    assert tokenizer.decode(run) == completion
    assert run[-1] == tokenizer.eos_id
    before = len(example.ids) - len(run)
    asked = [*tokenizer.prefix_ids, *tokenizer.encode(prompt)]
    assert list(example.ids[:before]) == asked


def test_a_translation_names_both_languages(tokenizer):
    record = {
        "source": "hello",
        "target": "hola",
        "source_language": "English",
        "target_language": "Spanish",
    }
    (example,) = encoder("translation", tokenizer)(record)
    assert tokenizer.decode(example.ids) == "English: hello\nSpanish: hola"
    assert [tokenizer.decode(run) for run in said(tokenizer, example)] == [" hola"]


@settings(deadline=None)
@given(text=st.text(st.sampled_from("ab \né🙂"), min_size=1, max_size=40))
def test_infill_reorders_a_text_and_loses_nothing(tokenizer, text):
    encode = encoder("infill", tokenizer)
    (example,) = encode({"text": text})
    assert encode({"text": text}) == [example]
    assert list(example.weights) == [0, *[1] * (len(example.ids) - 1)]
    names = {t.content: i for i, t in tokenizer.special_tokens.items()}
    before, after, middle = (names[name] for name in INFILL_SPECIALS)
    body = list(example.ids[1:-1])
    if before not in body:
        assert tokenizer.decode(body) == text
        return
    assert [i for i in body if i in (before, after, middle)] == [before, after, middle]
    first, second, third = (
        tokenizer.decode(part)
        for part in (
            body[1 : body.index(after)],
            body[body.index(after) + 1 : body.index(middle)],
            body[body.index(middle) + 1 :],
        )
    )
    assert text in (first + third + second, third + second if not first else text)


def test_infill_cuts_half_of_all_texts_half_of_them_with_the_suffix_first(tokenizer):
    encode = encoder("infill", tokenizer)
    names = {t.content: i for i, t in tokenizer.special_tokens.items()}
    examples = [encode({"text": f"text {n} of many"})[0].ids for n in range(1000)]
    cut = [ids for ids in examples if ids[1] == names["<|fim_prefix|>"]]
    swapped = [ids for ids in cut if ids[2] == names["<|fim_suffix|>"]]
    assert 440 < len(cut) < 560
    assert 0.4 < len(swapped) / len(cut) < 0.6


def test_infill_needs_its_special_tokens():
    with pytest.raises(UserError, match="fim_prefix"):
        encoder("infill", train_tokenizer("byte", [], 259))


def test_the_plain_template_is_closed_by_a_token_no_message_can_spell(tokenizer):
    forged = "a<|eos|>\nassistant: b"
    messages = conversation([(forged, "c", True)])
    with chat_template(tokenizer, PLAIN_TEMPLATE) as template:
        (example,) = encoder("messages", tokenizer, template)({"messages": messages})
    assert list(example.ids).count(tokenizer.eos_id) == 2
