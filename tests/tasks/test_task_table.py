"""Every task: records become items, gold answers score most, training asks alike."""

from __future__ import annotations

import pytest

from lmx.inputs.examples import FORMATS
from lmx.tasks import TASKS, Outcome, named
from lmx.tasks.reading import build

LETTERS = "A. a cat\nB. a big dog\nC. 3 fish"
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Good day."},
]
PAIR = {"en": "A house.", "es": "Una casa grande.", "other": "Ein großes Haus 家 。"}
HUMANEVAL = {
    "prompt": "def double(x):\n",
    "test": "def check(f):\n    assert f(2) == 4",
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
}
MBPP = {
    "text": "Write a function that doubles.",
    "code": "def double(x):\n    return 2 * x",
    "test_list": ["assert double(2) == 4", "assert double(0) == 0"],
}
TRUTHFUL = {
    "question": "What do bulls see?",
    "mc1_targets": {"choices": ["Motion", "Red"], "labels": [1, 0]},
    "mc2_targets": {"choices": ["Motion", "Red", "Little"], "labels": [1, 0, 1]},
}
STORY = {
    "passage": "Al has 3 cats, Bo 4.",
    "question": "How many?",
    "answer": "7 cats",
}
# In the forms in which they are published, and in which they are passed around.
RECORDS = {
    "boolq": [{"question": "is it", "passage": "It is.", "answer": True}],
    "openbookqa": [
        {"question": "What swims?", "options": LETTERS, "answer": "C. 3 fish"},
        {
            "question_stem": "What swims?",
            "choices": {"text": ["a cat", "fish"], "label": ["A", "B"]},
            "answerKey": "B",
        },
    ],
    "commonsenseqa": [
        {"question": "What?", "options": f"\n{LETTERS}", "answer": "A. a cat"}
    ],
    "piqa": [
        {"goal": "To sit", "sol1": "use a chair", "sol2": "run", "label": 0},
        {"question": "To sit", "options": "A. sit \nB. run ", "answer": "A. sit "},
    ],
    "siqa": [
        {
            "context": "Al ran.",
            "question": "Why?",
            "answerA": "late",
            "answerB": "fun",
            "answerC": "no",
            "label": "2",
        },
        {"passage": "Al.", "question": "Why?", "options": LETTERS, "answer": "B. dog"},
    ],
    "truthfulqa": [TRUTHFUL],
    "nq_open": [{"question": "who sang it", "answer": ["The Beatles", "Beatles"]}],
    "asdiv": [STORY, {**STORY, "body": STORY["passage"]}],
    "classification": [{"text": "Well!", "label": "good", "labels": ["bad", "good"]}],
    "package_descriptions": [{"text": "It edits. Much.", "summary": "an editor"}],
    "conversation": [{"messages": CONVERSATION, "lang": "english"}],
    "perplexity": [{"text": "Some text.", "file": "a.txt"}],
    "human_rights": [{"text": "All are free.", "lang": "eng"}],
    "python_syntax": TASKS["python_syntax"].built_in()[:1],
    "humaneval": [HUMANEVAL],
    "mbpp": [MBPP],
}
CASES = [
    (name, record)
    for name in TASKS
    for record in RECORDS.get(name, [PAIR] if "_en_" in name else [])
]


def item_of(name, record):
    items, left_out = build(TASKS[name], [("here", record)])
    assert left_out == 0
    return items[0]


def gold(task, item):
    """Returns the outcome of a model that knows the answer."""
    if task.request == "read":
        return Outcome(nats=(0.0,), tokens=(9,))
    if task.request == "choice":
        right = item.true or (item.gold,)
        nats = [0.0 if i == item.gold else -1.0 for i in right]
        nats = [-1e9] * len(item.options)
        for index in right:
            nats[index] = -1.0
        nats[item.gold] = -0.5
        return Outcome(nats=tuple(nats), tokens=(1,) * len(nats))
    text = item.answers[0] if item.answers else "    return 1\n"
    return Outcome(texts=(text,), reasons=("eos",), tokens=(3,))


def test_every_task_has_a_record_here():
    assert {name for name, _ in CASES} == set(TASKS)


@pytest.mark.parametrize(("name", "record"), CASES)
def test_gold_answers_score_the_maximum(name, record):
    pytest.importorskip("sacrebleu")
    task, item = TASKS[name], item_of(name, record)
    most = {"chrf": 100, "bleu": 100, "rouge1": 100, "rouge2": 100, "rougeL": 100}
    least = {"bits_per_byte": 0, "token_perplexity": 1}
    found = task.score(item, gold(task, item))
    for metric in task.metrics:
        expected = most.get(metric.name, least.get(metric.name, 1.0))
        if metric.name == "bleu" and "." not in str(item.answers):
            continue
        if metric.name == "macro_f1":
            assert found["macro_f1"] == 1.0  # of the classes that occur
            continue
        assert found[metric.name] == pytest.approx(expected), metric.name


@pytest.mark.parametrize(("name", "record"), CASES)
def test_fine_tuning_learns_the_answer_after_the_prompt_of_evaluation(name, record):
    task, item = TASKS[name], item_of(name, record)
    plain = task.record(item, chat=task.chat)
    if plain is None:
        assert not item.answers
        return
    form = next(f for f in ("messages", "prompt_completion", "text") if _is(plain, f))
    if FORMATS[form] is not None:
        assert FORMATS[form].problem(plain) is None
    if form == "prompt_completion":
        assert plain["prompt"] == task.prompt(item)
        answer = task.continuation(item.answers[0], chat=False)
        assert plain["completion"] == answer
        spoken = task.record(item, chat=True)["messages"]
        assert spoken[:-1] == task.messages(item)
        assert spoken[-1] == {"role": "assistant", "content": item.answers[0]}


def _is(record, form):
    keys = {"messages": "messages", "prompt_completion": "prompt", "text": "text"}
    return keys[form] in record


def test_shots_stand_before_the_question_with_their_answers():
    task = TASKS["boolq"]
    item, shot = (
        item_of("boolq", RECORDS["boolq"][0]),
        item_of("boolq", {"question": "was it", "passage": "No.", "answer": False}),
    )
    prompt = task.prompt(item, [shot])
    assert prompt == f"{shot.question} no\n\n{item.question}"
    roles = [turn["role"] for turn in task.messages(item, [shot])]
    assert roles == ["user", "assistant", "user"]


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'boolq'"):
        named("bolq")
    assert named("classification:7").name == "classification:7"
