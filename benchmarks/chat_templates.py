"""Published chat templates rendered by lmx and by transformers, byte for byte.

Command: python benchmarks/chat_templates.py FOLDER
Cost:    about a minute for 70 templates
Expect:  differ 0 (LOG.md)

FOLDER holds templates as `*.jinja`; a source release of llama-cpp-python has 70 of them
in vendor/llama.cpp/models/templates. transformers must be installed. A template may
refuse a conversation; then both must.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
EXTRA = {"unk_token": "<unk>", "pad_token": "<pad>"}


def turns(*contents: str) -> list[dict[str, str]]:
    """Returns a conversation; a first text that starts with 'system:' is one."""
    system = contents[0].startswith("system:")
    roles = ("user", "assistant")
    found = [{"role": "system", "content": contents[0][7:]}] if system else []
    rest = contents[system:]
    return found + [
        {"role": roles[i % 2], "content": text} for i, text in enumerate(rest)
    ]


CONVERSATIONS = {
    "one turn": turns("Hello, wörld! <|x|> {{ y }}"),
    "system": turns("system:Be brief.", "Hi"),
    "blanks": turns("a", "b\n\n", " c ", "d", "e"),
    "thoughts": turns("system:S\nT", "é", "<think>x</think>y", "z"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    import tokenizers
    import transformers

    from lmx.inputs.chat import ChatTemplate

    reference = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()),
        **TOKENS,
        **EXTRA,
    )
    counts: Counter[str] = Counter()
    for path in sorted(folder.glob("*.jinja")):
        source = path.read_text("utf-8")
        with ChatTemplate(source, extra_tokens=EXTRA, **TOKENS) as template:
            for name, messages in CONVERSATIONS.items():
                for prompt in (True, False):
                    asked = {"add_generation_prompt": prompt}
                    ours = outcome(template.render, messages, **asked)
                    theirs = outcome(
                        reference.apply_chat_template,
                        messages,
                        chat_template=source,
                        tokenize=False,
                        **asked,
                    )
                    same = "refused by both" if theirs is None else "same"
                    result = same if ours == theirs else "differ"
                    counts[result] += 1
                    if result == "differ":
                        print(f"{path.name}, {name}:\n  {ours!r}\n  {theirs!r}")
    print(", ".join(f"{name} {counts[name]}" for name in sorted({*counts, "differ"})))
    sys.exit(bool(counts["differ"]))


def outcome(render: Callable[..., str], *args, **variables) -> str | None:
    """Returns what was rendered; None where it was refused."""
    try:
        return render(*args, **variables)
    except Exception:  # whatever a template raises
        return None


if __name__ == "__main__":
    main()
