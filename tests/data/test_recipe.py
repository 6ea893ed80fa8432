"""What a config says of a mixture is what comes, or an error says what to write."""

from __future__ import annotations

import contextlib
import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmx.core.errors import UserError
from lmx.core.schema import DataConfig
from lmx.data.recipe import plan

ROWS = {"books": 900, "code": 90, "wiki": 10}


def planned(*mixture, rows=ROWS, steps=100, batch_size=10, **options):
    config = DataConfig(mixture=mixture, batch_size=batch_size, **options)
    return plan(config, rows, seed=0, steps=steps)


def test_without_entries_all_sources_reach_the_same_epoch():
    assert planned().counts(1000) == ROWS


def test_weights_are_shares_of_the_rows():
    found = planned("books=0.5 code=.3 wiki=0.2").counts(1000)
    assert found == {"books": 500, "code": 300, "wiki": 200}
    assert planned("wiki=1").counts(1000) == {"books": 0, "code": 0, "wiki": 1000}


@pytest.mark.parametrize("text", ["80%: wiki=1", "80: wiki=1", " 80 :wiki=1"])
def test_a_later_entry_holds_from_its_step_on(text):
    mixture = planned("books=1 code=1", text)
    assert mixture.counts(800) == {"books": 400, "code": 400, "wiki": 0}
    assert mixture.counts(1000) == {"books": 400, "code": 400, "wiki": 200}


def test_before_the_first_entry_weights_are_rows():
    assert planned("50%: wiki=1").counts(500) == {"books": 450, "code": 45, "wiki": 5}


def test_temperature_evens_out():
    # 900, 90 and 10 to the power 1/2 are 30, 9.49 and 3.16.
    found = planned(temperature=2).counts(100_000)
    total = 30 + 90**0.5 + 10**0.5
    for name, rows in ROWS.items():
        assert abs(found[name] - 100_000 * rows**0.5 / total) < 3
    assert planned("books=9 code=1", temperature=2).counts(400)["books"] == 300
    even = planned(temperature=1e9).counts(300)
    assert even == {"books": 100, "code": 100, "wiki": 100}


def test_no_temperature_takes_a_weight_to_zero_or_from_it():
    cold = planned(temperature=1e-300).counts(2 << 30)
    assert cold["books"] > 2 << 29 > 9 >= cold["code"] >= cold["wiki"] >= 1
    hot = planned("books=1 wiki=0", temperature=math.inf).counts(100)
    assert hot == {"books": 100, "code": 0, "wiki": 0}


def test_a_cap_names_the_source_its_epochs_and_what_fits():
    with pytest.raises(UserError) as error:
        planned("books=1 wiki=1", max_epochs=("wiki=4",))
    assert str(error.value) == (
        "source 'wiki' would come 50.00 times in 100 steps, more than "
        "data.max_epochs=4 allows; take at most 8 steps, or lower its share of the "
        "rows from 50.00% to 4.00% in data.mixture"
    )
    planned("books=1 wiki=1", max_epochs=("wiki=4",), steps=8)
    with pytest.raises(UserError, match=r"'wiki' would come 4\.50"):
        planned("books=1 wiki=1", max_epochs=("wiki=4",), steps=9)
    planned("books=96 wiki=4", max_epochs=("wiki=4", "2"))


def test_a_bare_cap_is_for_all_that_are_not_named():
    planned("code=1 wiki=1", steps=10, max_epochs=("1", "wiki=5"))
    with pytest.raises(UserError, match="'code' would come"):
        planned("code=1", steps=10, max_epochs=("1", "wiki=5"))


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        (("bokos=1",), "did you mean 'books'"),
        (("books",), "'books' is no name=weight"),
        (("books=-1",), "must be a number of 0 or more"),
        (("books=nan",), "must be a number of 0 or more"),
        (("8e1: books=1",), "'8e1:' is no name=weight"),
        (("books=9e99999999",), "must be a number of 0 or more"),
        (("books=1/0",), "must be a number of 0 or more"),
        (("books=0",), "no weights"),
        (("",), "no weights"),
        (("80%:",), "no weights"),
        (("0.5: books=1",), "0.5 is not a whole step"),
        (("1.2.3%: books=1",), "must be a number of 0 or more"),
        (("books=1", "100: code=1"), "'100: code=1', which never comes: there are 100"),
        (("books=1", "100%: code=1"), "write its start as a share of them"),
        (("80%: books=1", "20%: code=1"), r"start at steps \[80, 20\]; put them in"),
    ],
)
def test_what_says_nothing_is_refused_with_an_example(mixture, message):
    with pytest.raises(UserError, match=message):
        planned(*mixture)


def test_other_values_out_of_range_are_named():
    assert planned(temperature=1e-9).counts(9)["books"] >= 8
    with pytest.raises(UserError, match=r"data.temperature=0.0 must be above 0"):
        planned(temperature=0.0)
    with pytest.raises(UserError, match="did you mean 'books'"):
        planned(max_epochs=("bokos=1",))
    with pytest.raises(UserError, match="must be a number"):
        planned(max_epochs=("many",))


@given(st.text(max_size=25), st.text(max_size=10))
def test_any_text_is_a_mixture_or_a_user_error(text, cap):
    config = dataclasses.replace(DataConfig(), mixture=(text,), max_epochs=(cap,))
    with contextlib.suppress(UserError):
        ids = plan(config, ROWS, seed=0, steps=5).rows(0, 5)
        assert ((ids >= 0) & (ids < sum(ROWS.values()))).all()
