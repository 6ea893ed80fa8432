"""A data card as one HTML page: tables, bars, examples; no script and no network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #3a7bd5; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto;
  padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.4rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .7rem .3rem 0; vertical-align: top;
  border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.bar { background: var(--bar); height: .8rem; border-radius: 2px; min-width: 1px; }
.scroll { overflow-x: auto; }
details { margin: .3rem 0; } summary { cursor: pointer; }
blockquote { margin: .4rem 0 .4rem 1rem; padding-left: .8rem; white-space: pre-wrap;
  border-left: 3px solid var(--line); overflow-wrap: anywhere; }
small { opacity: .7; }
"""


def page(card: Mapping[str, Any]) -> str:
    """Returns the page of what `card.make` gathered."""
    sources = card["sources"]
    parts = [
        "<h1>Data card</h1>",
        f"<p>Built for: {escape(', '.join(card['uses']) or 'nothing stated')}. "
        f"{_total(sources, 'tokens'):,} tokens in {_total(sources, 'documents'):,} "
        f"documents of {len(sources)} sources.</p>",
        "<h2>Sources</h2>",
        _sources(sources),
        "<h2>From record to token</h2>",
        _stages(sources, card["duplicates"]),
        "<h2>What was left out, and why</h2>",
        _dropped(sources),
        "<h2>Evaluations that were looked for</h2>",
        _evaluations(card["evaluations"]),
        "<h2>Who asked to be left out</h2>",
        _refusals(card["refusals"]),
        "<h2>Duplicates</h2>",
        _duplicates(card["duplicates"]),
        "<h2>Repeated passages</h2>",
        _repeats(card["repeats"]),
        "<h2>Personal data that was masked</h2>",
        _masked(sources),
        "<h2>Lengths of documents</h2>",
        _lengths(sources),
        "<h2>Languages</h2>",
        _languages(card["languages"]),
        "<h2>Frequent phrases</h2>",
        _table(("phrase", "in sampled documents"), card["phrases"])
        if card["phrases"]
        else "<p>None is in more than one of the sampled documents.</p>",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Data card</title><style>{STYLE}</style></head><body>"
        + "\n".join(parts)
        + "</body></html>\n"
    )


def _total(sources: Mapping[str, Any], key: str) -> int:
    return sum(
        split[key] for about in sources.values() for split in about["stored"].values()
    )


def _sources(sources: Mapping[str, Any]) -> str:
    total = max(1, _total(sources, "tokens"))
    rows = []
    for name, about in sources.items():
        stored = about["stored"].values()
        tokens = sum(split["tokens"] for split in stored)
        origin = about["origin"] or about["path"]
        rows.append(
            (
                name,
                origin,
                about["licence"],
                ", ".join(about["uses"]),
                sum(split["documents"] for split in stored),
                tokens,
                f"{tokens / total:.1%}",
            )
        )
    head = ("source", "origin", "licence", "allows", "documents", "tokens", "share")
    return _table(head, rows)


def _stages(sources: Mapping[str, Any], duplicates: Mapping[str, Any]) -> str:
    rows = []
    for name, about in sources.items():
        counts, stored = about["counts"], about["stored"].values()
        gone = {
            kind: sum(
                each["documents"] for each in d["between"] if each["dropped"] == name
            )
            for kind, d in duplicates.items()
        }
        rows.append(
            (
                name,
                counts["records"],
                counts["documents_in"],
                counts["bytes_in"],
                counts["documents_out"],
                counts["bytes_out"],
                -gone["exact"],
                -gone["near"],
                sum(split["documents"] for split in stored),
                sum(split["bytes"] for split in stored),
                sum(split["tokens"] for split in stored),
            )
        )
    head = (
        "source",
        "records",
        "read",
        "bytes",
        "clean",
        "bytes",
        "exact",
        "near",
        "stored",
        "bytes",
        "tokens",
    )
    return _table(head, rows)


def _dropped(sources: Mapping[str, Any]) -> str:
    parts = []
    for name, about in sources.items():
        for reason, entry in sorted(
            about["dropped"].items(), key=lambda item: -item[1]["documents"]
        ):
            shown = "".join(
                f"<p>{escape(e['name'])}: {escape(e['why'])}</p>"
                + (f"<blockquote>{escape(e['text'])}</blockquote>" if e["text"] else "")
                for e in entry["examples"]
            )
            parts.append(
                f"<details><summary>{escape(name)}: <b>{escape(reason)}</b>, "
                f"{entry['documents']:,} documents ({entry['bytes']:,} bytes)"
                f"</summary>{shown}</details>"
            )
    return "".join(parts) or "<p>Nothing.</p>"


def _duplicates(duplicates: Mapping[str, Any]) -> str:
    parts = []
    for kind, found in duplicates.items():
        parts.append(
            f"<h3>{kind.capitalize()}</h3><p>{found['documents']:,} documents dropped "
            f"in {found['groups']:,} groups.</p>"
        )
        if found["between"]:
            rows = [(b["dropped"], b["kept"], b["documents"]) for b in found["between"]]
            parts.append(_table(("dropped of", "kept of", "documents"), rows))
        for group in found["largest"]:
            shown = "".join(
                f"<p>{escape(e['name'])}</p><blockquote>{escape(e['text'])}</blockquote>"
                for e in group["examples"]
            )
            parts.append(
                f"<details><summary>a group of {group['documents']:,}</summary>{shown}"
                "</details>"
            )
    return "".join(parts)


def _evaluations(evaluations: Mapping[str, Any]) -> str:
    rows = [(name, one["texts"], one["too short"]) for name, one in evaluations.items()]
    head = ("evaluation", "texts", "too short to be found")
    return _table(head, rows) if rows else "<p>None.</p>"


def _refusals(told: Mapping[str, Any]) -> str:
    removals = told["removals"]
    rows = [(name, count) for name, count in told["addresses"].items() if count]
    lists = ", ".join(told[key] or "none" for key in ("optouts", "robots"))
    parts = [
        f"<p>Removal list: {removals['lines']:,} lines, {removals['unmatched']:,} of "
        f"no document. Opt-outs, saved robots.txt: {escape(lists)}. Crawlers whose "
        f"refusals hold: {escape(', '.join(told['crawlers']) or 'none')}.</p>",
        _table(("source", "documents with an address"), rows) if rows else "",
    ]
    if removals["such_as"]:
        lines = "\n".join(removals["such_as"])
        parts.append(f"<blockquote>{escape(lines)}</blockquote>")
    return "".join(parts)


def _repeats(repeats: Mapping[str, Any]) -> str:
    if repeats["words"] is None:
        return "<p>Not looked for.</p>"
    told = f"<p>Passages of {repeats['words']} words that stood earlier.</p>"
    keys = ("documents", "characters", "emptied")
    rows = [
        (name, *(count.get(key, 0) for key in keys))
        for name, count in repeats["sources"].items()
    ]
    head = ("source", "documents cut", "characters", "documents emptied")
    return told + (_table(head, rows) if rows else "<p>There were none.</p>")


def _languages(languages: Sequence[Sequence[Any]] | None) -> str:
    if languages is None:
        return "<p>Not identified: the extra lmx[data] was not installed.</p>"
    return _table(
        ("language, as py3langid says", "of the sampled documents"), languages
    )


def _masked(sources: Mapping[str, Any]) -> str:
    rows = [
        (name, kind, count)
        for name, about in sources.items()
        for kind, count in about["masked"].items()
        if count
    ]
    return _table(("source", "kind", "places"), rows) if rows else "<p>None.</p>"


def _lengths(sources: Mapping[str, Any]) -> str:
    bins: Counter[int] = Counter()
    for about in sources.values():
        bins.update({int(bits): count for bits, count in about["lengths"].items()})
    if not bins:
        return "<p>No documents.</p>"
    most = max(bins.values())
    rows = [
        f'<tr><td class="n">below {_size(1 << bits)}</td><td class="n">{bins[bits]:,}'
        f'</td><td style="width:70%"><div class="bar" '
        f'style="width:{100 * bins[bits] / most:.1f}%"></div></td></tr>'
        for bits in range(min(bins), max(bins) + 1)
    ]
    return (
        '<table><tr><th class="n">bytes</th><th class="n">documents</th><th></th></tr>'
        + "".join(rows)
        + "</table>"
    )


def _size(count: int) -> str:
    for unit in ("", " kB", " MB"):
        if count < 1024:
            return f"{count}{unit}"
        count //= 1024
    return f"{count} GB"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    rows = [list(row) for row in rows]
    numeric = [bool(rows) and isinstance(row, int) for row in (rows or [[]])[0]]
    numeric += [False] * (len(head) - len(numeric))

    def cells(tag: str, row: Sequence[Any]) -> str:
        return "".join(
            f"<{tag}{' class=n' if n else ''}>"
            f"{escape(f'{c:,}' if isinstance(c, int) else str(c))}</{tag}>"
            for c, n in zip(row, numeric, strict=True)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><tr>{cells("th", head)}</tr>{body}</table></div>'
    )
