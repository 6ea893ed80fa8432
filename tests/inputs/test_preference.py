"""Pairs as public sets have them; the reference is the record that was taken apart."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmx.inputs.examples import FORMATS, chat_template
from lmx.inputs.preference import pair_of
from lmx.inputs.tokenizers import train_tokenizer

TEXTS = ["user: is it good or bad\n", "assistant: it is neither of both\n"] * 9
FORM = FORMATS["preference"]
WORDS = st.lists(st.sampled_from(["it", "is", "good", "é🙂", "\n"]), max_size=4)
SAID = WORDS.map(lambda words: " ".join([*words, "so"]))
TURNS = st.lists(st.tuples(SAID, SAID), max_size=2)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer("bpe", TEXTS, 300)


@pytest.fixture(scope="module")
def template(tokenizer):
    with chat_template(tokenizer) as template:
        yield template


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **keys):
    return {"role": "assistant", "content": text, **keys}


def conversation(turns, question):
    pairs = ((user(asked), assistant(said)) for asked, said in turns)
    return [*(message for pair in pairs for message in pair), user(question)]


def learned(tokenizer, example):
    ids = [i for i, w in zip(example.ids, example.weights, strict=True) if w]
    return tokenizer.decode(ids)


def context(example):
    return list(example.ids)[: list(example.weights).index(1)]


@settings(deadline=None, max_examples=40)
@given(prompt=SAID, good=SAID, bad=SAID)
def test_a_pair_of_texts_is_two_completions(tokenizer, template, prompt, good, bad):
    record = {"prompt": prompt, "chosen": f" {good}", "rejected": f" {bad}!"}
    assert FORM.problem(record) is None
    pair = FORM.encoder(tokenizer, template)(record)
    single = FORMATS["prompt_completion"].encoder(tokenizer, template)
    expected = [
        *single({"prompt": prompt, "completion": record["chosen"]}),
        *single({"prompt": prompt, "completion": record["rejected"]}),
    ]
    assert pair == expected
    assert len(pair) == FORM.group
    assert context(pair[0]) == context(pair[1])


@settings(deadline=None, max_examples=40)
@given(turns=TURNS, question=SAID, good=SAID, bad=SAID)
def test_a_pair_is_the_same_in_each_shape_of_public_sets(
    tokenizer, template, turns, question, good, bad
):
    prompt = conversation(turns, question)
    replies = [assistant(good)], [assistant(f"{bad}!")]
    shapes = [
        dict(zip(("prompt", "chosen", "rejected"), (prompt, *sides), strict=True))
        for sides in (replies, (good, f"{bad}!"), [[*prompt, *r] for r in replies])
    ]
    shapes.append({key: shapes[2][key] for key in ("chosen", "rejected")})
    shapes.append(shapes[2] | {"prompt": question})  # as UltraFeedback has it
    if not turns:
        shapes += [shapes[0] | {"prompt": question}, shapes[1] | {"prompt": prompt}]
    for shape in shapes:
        assert FORM.problem(shape) is None
        assert pair_of(shape) == (prompt, *replies)
    pair = FORM.encoder(tokenizer, template)(shapes[0])
    assert [learned(tokenizer, one) for one in pair] == [f" {good}", f" {bad}!"]
    asked = tokenizer.encode_markup(template.render(prompt))
    assert [context(one) for one in pair] == [asked, asked]


def test_turns_after_the_first_that_differs_are_learned_where_they_are_replies(
    tokenizer, template
):
    more = [assistant("b"), user("why"), assistant("c"), assistant("d", weight=0)]
    record = {"prompt": [user("a")], "chosen": more, "rejected": [assistant("e")]}
    chosen, rejected = FORM.encoder(tokenizer, template)(record)
    assert learned(tokenizer, chosen) == " b c"
    assert learned(tokenizer, rejected) == " e"


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        (
            "\n\nHuman: a b\n\nAssistant: It is good",
            "\n\nHuman: a b\n\nAssistant: It was",
            ("\n\nHuman: a b\n\nAssistant: It", " is good", " was"),
        ),
        ("Reply:\nyes", "Reply:\nno", ("Reply:\n", "yes", "no")),
        ("the cat", "the car", ("the", " cat", " car")),
        ("the sky", "the sky is", ("the", " sky", " sky is")),
    ],
)
def test_a_prompt_that_is_left_out_is_the_common_beginning(chosen, rejected, expected):
    assert pair_of({"chosen": chosen, "rejected": rejected}) == expected


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "why"),
    [
        ("a", "b", "b", "equal"),
        ([user("a")], "b", "b", "equal"),
        ([user("a")], "b", [assistant("b")], "equal"),
        ("a", "b", " \n", "rejected is empty"),
        ("a", "", "b", "chosen is empty"),
        ([user("a")], [assistant("b")], [assistant(" ")], "rejected is empty"),
        ([user("a")], [assistant("b", weight=0)], "c", "chosen is empty"),
        ([user("a")], [user("b"), assistant("c")], "d", "prompts differ: chosen"),
        ("a", [user("b"), assistant("c")], "d", "prompts differ: chosen"),
        (None, [user("a"), assistant("b")], [user("c"), assistant("d")], "no common"),
        (
            None,
            [user("a"), assistant("b"), user("c"), assistant("e")],
            [user("a"), assistant("b"), user("d"), assistant("e")],
            "prompts differ",
        ),
        (None, "yes", "no", "no common beginning"),
        (None, [user("a"), assistant("b")], "c", "rejected is text"),
        ("a", [{"role": "user"}], "c", r"chosen[0] has no role"),
        ("a", [], "c", "chosen is not a list of messages"),
        ([user("a")], [user("a")], "c", "prompts differ"),
    ],
)
def test_what_is_no_pair_is_named(prompt, chosen, rejected, why):
    record = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    assert why in FORM.problem(record)


def test_a_long_common_beginning_without_blanks_is_gone_through_once():
    """Were every letter a beginning of a word, it would take an hour."""
    same = "so " + "書" * 1_000_000
    found = pair_of({"chosen": same + " a", "rejected": same + "b"})
    assert found == ("so", same[2:] + " a", same[2:] + "b")
