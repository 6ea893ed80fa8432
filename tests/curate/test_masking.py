from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmx.core.errors import UserError
from lmx.curate.masking import MASKS, mask, passes_luhn, passes_mod_97

FOUND = {
    "email": [
        "jo.bloggs+tag@mail.example.co.uk",
        "a@b.org",
        "ööö@bücher.example",
        "x_y%z@a-b.museum",
    ],
    "phone": [
        "+49 30 901820",
        "+44 (0)20 7946 0958",
        "+1 202-555-0173",
        "+33 1 23 45 67 89",
        "(202) 555-0173",
        "202-555-0173",
        "1-800-555-0199",
        "020 7946 0958",
        "06 12 34 56 78",
        "030/9018-200",
        "0049 30 901820",
        "+86 10 6552 9988",
    ],
    "ip": ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "2a00:1450:4001::8a"],
    "card": [
        "4111111111111111",
        "4111 1111 1111 1111",
        "5555-5555-5555-4444",
        "3782 822463 10005",
        "378282246310005",
        "6011111111111117",
        "3530111333300000",
        "30569309025904",
    ],
    "iban": [
        "DE89370400440532013000",
        "DE89 3704 0044 0532 0130 00",
        "GB82 WEST 1234 5698 7654 32",
        "FR14 2004 1010 0505 0001 3M02 606",
        "NO93 8601 1117 947",
        "MT84MALT011000012345MTLCAST001S",
    ],
}
NOT = {
    "email": ["@decorator", "a@b", "x = a @ b.T", "@types/node", "user@host"],
    "phone": [
        "1999-2003",
        "12 345 678 people",
        "10,000,000",
        "ISBN 978-3-16-148410-0",
        "2024-11-22 10:30:00",
        "3.14159265358979",
        "0 1 2 3 4 5 6 7 8 9",
        "+1",
        "000 000 001 002",
        "20240101-123456",
    ],
    "ip": [
        "192.168.178.20",
        "127.0.0.1",
        "256.300.12.10",
        "section 11.7.3.2",
        "v10.20.30.40",
        "1.22.33.44.55",
        "std::vector",
        "12:30:45",
        "2001:db8::1",
        "239.255.255.250",
    ],
    "card": [
        "4111111111111112",  # the check digit
        "1234567812345670",  # no network
        "411111111111",
        "id-4111111111111111",
    ],
    "iban": [
        "DE88370400440532013000",
        "DE8937040044053201300",
        "ZZ89370400440532013000",
        "XDE89370400440532013000",
    ],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n in FOUND for v in FOUND[n]])
def test_planted_values_are_masked_and_what_surrounds_them_stays(name, value):
    text = f"Before, ({value}), between {value}, and after: {value}."
    masked, count = MASKS[name](text)
    tag = f"<{name.upper()}>"
    assert masked == f"Before, ({tag}), between {tag}, and after: {tag}."
    assert count == 3
    assert MASKS[name](value) == (tag, 1)
    assert MASKS[name](f"请致电{value}查询") == (f"请致电{tag}查询", 1)


@pytest.mark.parametrize(("name", "value"), [(n, v) for n in NOT for v in NOT[n]])
def test_neighbours_stay(name, value):
    text = f"see {value} here"
    assert MASKS[name](text) == (text, 0)


def test_all_masks_count_and_none_takes_the_others_for_its_own():
    text = "\n".join(f"{value} ;" for values in FOUND.values() for value in values)
    masked, counts = mask(text)
    assert counts == {name: len(FOUND[name]) for name in MASKS}
    assert (
        masked.split()
        == "".join(
            f"<{name.upper()}> ; " * len(values) for name, values in FOUND.items()
        ).split()
    )
    assert mask(text, ["email"])[1] == {"email": len(FOUND["email"])}
    with pytest.raises(UserError, match="did you mean 'email'"):
        mask(text, ["e-mail"])


@given(st.text(alphabet="0123456789", min_size=1, max_size=30))
def test_one_check_digit_of_ten_passes(digits):
    """Reference: Luhn's table of doubled digits, from the right, by hand."""
    table = {0: 0, 1: 2, 2: 4, 3: 6, 4: 8, 5: 1, 6: 3, 7: 5, 8: 7, 9: 9}
    total = 0
    for place, digit in enumerate(reversed(digits)):
        total += table[int(digit)] if place % 2 == 0 else int(digit)
    check = (10 - total % 10) % 10
    assert [d for d in range(10) if passes_luhn(digits + str(d))] == [check]


@given(st.data())
def test_an_account_with_one_wrong_sign_fails(data):
    account = "GB82WEST12345698765432"
    assert passes_mod_97(account)
    place = data.draw(st.integers(2, len(account) - 1))
    sign = data.draw(st.sampled_from("0123456789"))
    changed = account[:place] + sign + account[place + 1 :]
    assert passes_mod_97(changed) == (changed == account)


HOSTILE = [
    "a",
    "a.",
    "a@",
    "a@a.",
    "@",
    "1",
    "1.",
    "1 ",
    "+1 ",
    "012 34 ",
    ":",
    "2001:",
]
HOSTILE += ["4111 ", "DE89 ", "DE89A", "(0", "a@a-", " ", "1-", "200-", "a@b.c.", "DE"]


@pytest.mark.parametrize("unit", HOSTILE)
def test_half_a_megabyte_of_almost_matches_ends(unit):
    """A pattern of quadratic time would need hours: that this ends is the test."""
    text = unit * (500_000 // len(unit))
    for name in MASKS:
        masked, count = MASKS[name](text)
        assert count or masked == text


@given(st.text(alphabet="a1.@ +-:(0)D8E9") | st.text())
def test_any_text_can_be_masked_and_only_what_was_found_changes(text):
    masked, counts = mask(text)
    if not sum(counts.values()):
        assert masked == text
