"""Files → the items of a task: which are scored, and which may be learned of.

A file whose name says 'train' is learned of, one that says 'dev', 'validation', 'test'
is scored. Of a file that says neither, a task may hold a share out: an item is scored
where the hash of its key is below that share, whatever its place in the file. What is
to be scored is never a shot.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lmx.core.errors import DataError, UserError, did_you_mean
from lmx.data import places, readers
from lmx.data.places import FileEntry
from lmx.tasks.task import Fields, Item, Task

TRAIN = ("train", "training")
SCORED = ("test", "validation", "valid", "val", "dev")  # the first that is there


class Data(NamedTuple):
    """What a task has to ask.

    Attributes:
      scored: the items that scores are of.
      train: those that shots and fine-tuning may use.
      rule: how the two were parted, in words.
      left_out: how many records cannot be scored.
      files: their names, sizes and times.
    """

    scored: list[Item]
    train: list[Item]
    rule: str
    left_out: int
    files: list[list[Any]]


def read(task: Task, data: Mapping[str, str]) -> Data:
    """Returns the items of a task, split.

    `data` says where the files of a task are, a file, a folder or a URL; '' names a
    folder with those of many. What is not there is read where it is published.

    Raises:
      UserError: the task has no files.
      DataError: a record cannot be read or lacks a field, or none can be scored.
    """
    splits = find(task, data)
    if splits is None:
        assert task.built_in is not None
        items, left_out = build(task, ((task.name, row) for row in task.built_in()))
        return Data(items, [], "built in, scored whole", left_out, [])
    found, left_out = {}, 0
    for split, entries in splits.items():
        found[split], missed = build(task, _records(entries))
        left_out += missed
    used = [entry for entries in splits.values() for entry in entries]
    names = ", ".join(entry.name for entry in used)
    scored, train, rule = _parted(task, found)
    if not scored:
        raise DataError(
            f"task {task.name}: nothing to score in {names} ({rule}, {left_out} "
            "records left out); give the file that is scored"
        )
    files = [[entry.name, entry.size, entry.stamp] for entry in used]
    return Data(scored, train, rule, left_out, files)


def find(task: Task, data: Mapping[str, str]) -> dict[str, list[FileEntry]] | None:
    """Returns the files of a task by split, '' for those of none; None: built in."""
    if task.name in data:
        listing = places.find(data[task.name])
        if listing is None:
            raise DataError(
                f"--data={task.name}={data[task.name]}: there is no such file"
            )
        return _by_split(task, listing.entries)
    if "" in data:
        folder = places.find(data[""])
        if folder is None or folder.single:
            what = "no such folder" if folder is None else "a file: name its task"
            raise DataError(f"--data={data['']} is {what}")
        mine = [entry for entry in folder.entries if _is_of(task, entry)]
        if mine:
            return _by_split(task, mine)
    if task.built_in is not None:
        return None
    give = (
        f"give --data={task.name}=FILE, JSON lines or Parquet with "
        f"{', '.join(task.fields)}"
    )
    if not places.is_url(task.public):
        where = "no data"
        if "" in data:
            where = f"{data['']} has no file {task.file or task.name}…"
        raise UserError(f"task {task.name}: {where}; {give}, made of {task.public}")
    try:
        listing = places.find(task.public)
    except UserError as error:
        raise type(error)(
            f"task {task.name} is read from {task.public}, which fails: {error}; {give}"
        ) from error
    entries = listing.entries if listing else []
    mine = [entry for entry in entries if entry.name.startswith(task.subset)]
    return _by_split(task, mine)


def build(task: Task, named: Iterable[tuple[str, Fields]]) -> tuple[list[Item], int]:
    """Returns the items of records, with their ids, and how many cannot be scored."""
    items: list[Item] = []
    left_out = 0
    seen: dict[str, int] = {}
    for name, fields in named:
        missing = [field for field in task.fields if not _has(fields, field)]
        if missing:
            raise DataError(
                f"task {task.name}: {name} has no field {missing[0]!r}"
                f"{did_you_mean(missing[0], fields)}; it needs "
                f"{', '.join(task.fields)}, as in {task.public}"
            )
        try:
            item = task.item(fields)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            what = f"no field {error}" if isinstance(error, KeyError) else error
            raise DataError(
                f"task {task.name}: {name} is no example ({what}); mend the record, or "
                f"see {task.public}"
            ) from error
        if item is None:
            left_out += 1
            continue
        digest = _digest(item)
        seen[digest] = seen.get(digest, 0) + 1
        name = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        items.append(dataclasses.replace(item, id=name, key=item.key or digest))
    return items, left_out


def shots(task: Task, data: Data, count: int, *, seed: int) -> tuple[list[Item], Data]:
    """Returns `count` items to show with their answers, and the data without them.

    They are drawn of what may be learned; where there is nothing, of what would be
    scored, and then they are not.
    """
    if count == 0:
        return [], data
    if task.request == "read" or task.chat:
        raise UserError(f"task {task.name} takes no shots; leave --shots out")
    pool = [item for item in data.train or data.scored if item.answers]
    if len(pool) < count + (not data.train):  # one at least is to be scored
        raise UserError(
            f"--shots={count}: task {task.name} has {len(pool)} items to show; ask for "
            "fewer, or give a file with 'train' in its name beside the scored one"
        )
    drawn = draw(pool, count, seed=seed)
    if data.train:
        return drawn, data
    shown = {item.id for item in drawn}
    rest = [item for item in data.scored if item.id not in shown]
    rule = f"{data.rule}, {len(drawn)} of them shown as shots and not scored"
    return drawn, data._replace(scored=rest, rule=rule)


def draw(items: Sequence[Item], count: int | None, *, seed: int = 0) -> list[Item]:
    """Returns `count` items by the hash of their ids, in the order of the file.

    A larger count has all of a smaller one's.
    """
    if count is None or count >= len(items):
        return list(items)
    ranked = sorted(items, key=lambda item: share(f"{seed}/{item.id}"))
    kept = {item.id for item in ranked[:count]}
    return [item for item in items if item.id in kept]


def share(key: str) -> float:
    """Returns where the hash of a key lies in [0, 1)."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _parted(task: Task, found: dict[str, list[Item]]) -> tuple[list, list, str]:
    """Returns what is scored, what may be learned, and the rule."""
    train = [item for name in TRAIN for item in found.pop(name, [])]
    named = next((name for name in SCORED if name in found), None)
    if named is not None:
        return found[named], train, f"the {named} split"
    whole = found.get("", [])
    if task.test_share is None or (train and not whole):
        return whole, train, "the whole file is scored"
    held = [item for item in whole if share(item.key) < task.test_share]
    rest = [item for item in whole if share(item.key) >= task.test_share]
    rule = f"scored where sha256(key) / 2^256 < {task.test_share:g}"
    return held, [*train, *rest], rule


def _by_split(task: Task, entries: Sequence[FileEntry]) -> dict[str, list[FileEntry]]:
    """Returns files by the split that their names speak of, '' for none.

    Of texts to be read all are; of others only those that hold records.
    """
    found: dict[str, list[FileEntry]] = {}
    for entry in entries:
        if task.request == "read":
            found.setdefault("", []).append(entry)
        elif readers.reader_of(entry.name) is not None:
            words = re.split(r"[^a-z]+", entry.name.lower())
            named = [word for word in words if word in (*TRAIN, *SCORED)]
            found.setdefault(named[-1] if named else "", []).append(entry)
    if not found:
        names = ", ".join(entry.name for entry in entries) or "nothing"
        raise DataError(
            f"task {task.name}: {names} holds no records; give JSON lines or Parquet"
        )
    return found


def _is_of(task: Task, entry: FileEntry) -> bool:
    """Whether a file of a folder is a task's: its name, and a split or nothing more."""
    stem = entry.name.rpartition("/")[2].lower().split(".")[0]
    base = (task.file or task.name).lower()
    rest = stem.removeprefix(base).strip("_-")
    return stem.startswith(base) and rest in (*TRAIN, *SCORED, "")


def _records(entries: Sequence[FileEntry]) -> Iterator[tuple[str, Fields]]:
    for entry in entries:
        for record in readers.read([entry], whole_files=True):
            if record.problem is not None:
                raise DataError(
                    f"{record.name} of {entry.path} cannot be read: {record.problem}; "
                    "mend or remove it"
                )
            yield record.name, {"file": entry.name, **record.fields}


def _digest(item: Item) -> str:
    told: list[Any] = [item.question, item.answers, item.options, item.facts]
    told += [[dict(message) for message in item.messages]]
    text = json.dumps(told, sort_keys=True, default=list)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _has(fields: Fields, name: str) -> bool:
    """Whether a record has a field; 'a|b' is met by either."""
    return any(option in fields for option in name.split("|"))
