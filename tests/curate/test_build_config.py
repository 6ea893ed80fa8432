"""A build's options: what is refused, by name, before any work."""

from __future__ import annotations

import pytest

from lmx.core.errors import DataError, UserError
from lmx.curate import rights
from lmx.curate.config import build_config, default_build_config


def config(**source):
    made = default_build_config()
    made.sources = {
        "a": {"path": "x", "licence": "CC0-1.0", "uses": ("train",), **source}
    }
    return made


def test_a_config_comes_back_as_it_was_written():
    made = config(max_documents=3)
    made.filters = {"length": {"least": 5}}
    checked = build_config(made)
    assert checked.sources["a"].licence == "CC0-1.0"
    assert checked.sources["a"].max_documents == 3
    assert checked.filters == {"length": {"least": 5}}


def test_sources_may_be_added_and_other_keys_not():
    made = default_build_config()
    made.sources.a = {"path": "x", "licence": "CC0-1.0"}
    made.filters.length = {"least": 3}
    assert build_config(made).sources["a"].path == "x"
    with pytest.raises(AttributeError):
        made.filter = {}


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({"licence": " "}, r"sources\.a\.licence is empty"),
        ({"path": ""}, r"sources\.a\.path is empty"),
        ({"licens": "x"}, r"unknown key sources\.a\.licens; did you mean .*licence"),
        ({"uses": ("comercial",)}, r"'comercial'; did you mean 'commercial'"),
        ({"max_documents": 0}, r"sources\.a\.max_documents=0 must be 1 or more"),
        ({"max_documents": "3"}, r"sources\.a\.max_documents='3' must be a whole"),
    ],
)
def test_a_wrong_source_is_named(source, told):
    with pytest.raises(UserError, match=told):
        build_config(config(**source))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"sources": {}}, "sources is empty"),
        ({"sources": {"A b": {}}}, "source name 'A b'"),
        ({"sources": {"train": {}}}, "cannot be called 'train'"),
        ({"near_similarity": 1.5}, "near_similarity=1.5 must lie"),
        ({"duplicates": ("extact",)}, "'extact'; did you mean 'exact'"),
        ({"vocab": 1}, "unknown key vocab; did you mean 'vocab_size'"),
        ({"filters": {"length": 3}}, "filters.length=3 must be a section"),
    ],
)
def test_a_wrong_option_is_named(values, told):
    made = {**config().to_dict(), **values}
    with pytest.raises(UserError, match=told):
        build_config(made)


def test_uses_that_a_licence_does_not_allow_are_refused_by_source():
    made = config()
    made.sources["b"] = {"path": "y", "licence": "CC-BY-NC-4.0", "uses": ("train",)}
    made.uses = ("train", "commercial")
    made.sources["a"]["uses"] = ("train", "commercial")
    with pytest.raises(
        DataError, match=r"b \(CC-BY-NC-4.0\) does not allow commercial"
    ):
        rights.check(build_config(made))
    made.uses = ("train",)
    rights.check(build_config(made))


@pytest.mark.parametrize("name", ["", "GPTBot ", "GPT Bot", "Bot/1.0"])
def test_a_crawler_that_no_robots_txt_can_name_is_refused(name):
    made = config()
    made.crawlers = ("*", name)
    with pytest.raises(UserError, match=f"crawlers names '{name}'"):
        build_config(made)


def test_robots_that_nobody_honours_are_refused():
    made = config()
    made.robots, made.crawlers = "saved", ()
    with pytest.raises(UserError, match="robots='saved' is not read"):
        build_config(made)
