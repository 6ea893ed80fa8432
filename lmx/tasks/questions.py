"""Tasks that ask: choices by likelihood, short answers, numbers."""

from __future__ import annotations

import re

from lmx.tasks.metrics import (
    ACCURACY,
    ACCURACY_BYTES,
    ACCURACY_TOKENS,
    EXACT_MATCH,
    F1,
    MC1,
    MC2,
    NUMBER_ACCURACY,
    macro_f1,
)
from lmx.tasks.shapes import choice, field, numeric, truthful, written
from lmx.tasks.task import Fields, Item, Task

HUB = "hf:"  # the Parquet files that the Hub keeps of a data set

BOOLQ = Task(
    name="boolq",
    about="yes or no, by a passage",
    public=f"{HUB}google/boolq",
    fields=("question", "passage", "answer"),
    item=choice("{passage}\nQuestion: {question}?\nAnswer:", options=("no", "yes")),
    request="choice",
    metrics=(ACCURACY, macro_f1(2)),
)
OPENBOOKQA = Task(
    name="openbookqa",
    about="elementary science, four choices",
    public=f"{HUB}allenai/openbookqa",
    subset="main/",
    fields=("question|question_stem", "options|choices"),
    item=choice("Question: {question}\nAnswer:"),
    request="choice",
    metrics=(ACCURACY_BYTES, ACCURACY_TOKENS, ACCURACY),
)
COMMONSENSEQA = Task(
    name="commonsenseqa",
    about="common sense, five choices",
    public=f"{HUB}tau/commonsense_qa",
    fields=("question", "options|choices"),
    item=choice("Question: {question}\nAnswer:"),
    request="choice",
    metrics=(ACCURACY_BYTES, ACCURACY_TOKENS, ACCURACY),
)
PIQA = Task(
    name="piqa",
    about="how to do things, two choices",
    public=f"{HUB}ybisk/piqa",
    fields=("question|goal", "options|sol1"),
    item=choice("Question: {question}\nAnswer:"),
    request="choice",
    metrics=(ACCURACY_BYTES, ACCURACY_TOKENS, ACCURACY),
)
SIQA = Task(
    name="siqa",
    about="what people do and feel, three choices",
    public=f"{HUB}allenai/social_i_qa",
    fields=("passage|context", "question", "options|answerA"),
    item=choice("{passage}\nQuestion: {question}\nAnswer:"),
    request="choice",
    metrics=(ACCURACY_BYTES, ACCURACY_TOKENS, ACCURACY),
)
TRUTHFULQA = Task(
    name="truthfulqa",
    about="what people get wrong: MC1, MC2, without the six shots of the paper",
    public=f"{HUB}truthfulqa/truthful_qa",
    subset="multiple_choice/",
    fields=("question", "mc1_targets", "mc2_targets"),
    item=truthful("Q: {question}\nA:"),
    request="choice",
    metrics=(MC2, MC1),
)
NQ_OPEN = Task(
    name="nq_open",
    about="open questions, short answers",
    public=f"{HUB}google-research-datasets/nq_open",
    fields=("question", "answer"),
    item=written("Question: {question}?\nAnswer:", answer="answer"),
    request="write",
    metrics=(F1, EXACT_MATCH),
    instruction="Answer the question in a few words.",
    max_new_tokens=32,
    test_share=0.5,
)
ASDIV = Task(
    name="asdiv",
    about="arithmetic stories, the last number of the answer",
    public="ASDiv, of github.com/chaochun/nlu-asdiv-dataset",
    fields=("passage|body", "question", "answer"),
    item=numeric("Question: {passage} {question}\nAnswer:", answer="answer"),
    request="write",
    metrics=(NUMBER_ACCURACY,),
    stop=("\n\n", "Question:"),
    max_new_tokens=96,
    test_share=0.5,
)


def _labelled(fields: Fields) -> Item:
    """Returns a text and its label; 'labels' names all there are, parted by '|'."""
    names = fields["labels"]
    names = names.split("|") if isinstance(names, str) else list(names)
    label = fields["label"]
    gold = names.index(label) if isinstance(label, str) else int(label)
    if len(names) != len(set(names)) or not 0 <= gold < len(names):
        raise ValueError(f"label {label!r} is not one of the {len(names)} labels")
    facts = {"classes": tuple(names)}
    question = f"{str(field(fields, 'text')).strip()}\nLabel:"
    return Item(question, (names[gold],), tuple(names), gold, facts=facts)


def classification(classes: int, *, name: str = "classification") -> Task:
    """Returns the task of one of `classes` labels for a text."""
    return Task(
        name=name,
        about=f"one of {classes} labels",
        public="your own file",
        fields=("text", "label", "labels"),
        item=_labelled,
        request="choice",
        metrics=(ACCURACY, macro_f1(classes)),
        test_share=0.1,
    )


def by_classes(name: str) -> Task | None:
    """Returns the task that 'classification:3' names, None for other names."""
    match = re.fullmatch(r"classification:(\d{1,3})", name)
    return classification(int(match[1]), name=name) if match else None


QUESTIONS = (
    *(BOOLQ, OPENBOOKQA, COMMONSENSEQA, PIQA, SIQA, TRUTHFULQA, NQ_OPEN, ASDIV),
    classification(2),
)
