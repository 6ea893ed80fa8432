"""Addresses and numbers of people → placeholders such as `<EMAIL>`.

Found by form, and where there is one by checksum. Every pattern takes linear time on
any input: its quantifiers are bounded or give nothing back. Not here: names, streets,
and passports, which have no form.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable

from lmx.core.errors import pick

# Letters of alphabets: a Chinese sentence touches what stands in it without a blank.
LETTERS = "A-Za-z\xb5-\u052f"
EMAIL = re.compile(
    rf"(?<![{LETTERS}0-9_.%+-])[{LETTERS}0-9_.%+-]{{1,64}}+"
    rf"@(?:[{LETTERS}0-9][{LETTERS}0-9-]{{0,61}}+\.){{1,8}}[{LETTERS}]{{2,24}}+"
    rf"(?![{LETTERS}0-9_-])"
)
# With a country's code; as in North America; or with a leading zero, in groups.
PHONE = re.compile(
    r"(?<![\w.+/=:-])(?:"
    r"(?:\+|00[ .-]?)[1-9]\d{0,2}+(?:[ ./\xa0-]{0,2}+(?:\d{1,4}+|\(\d{1,4}\))){2,6}+"
    r"|(?:1[ .-])?(?:\([2-9]\d\d\)[ ]?|[2-9]\d\d[.-])[2-9]\d\d[ .-]\d{4}"
    r"|(?:0[1-9]\d{0,3}+|\(0[1-9]\d{0,3}\))(?:[ \xa0]\d{2,4}+){2,4}+"
    r"|(?:0[1-9]\d{1,3}+|\(0[1-9]\d{1,3}\))[ ]?[/-][ ]?\d{3,4}+(?:[ -]?\d{2,4}+){1,2}+"
    r")(?!\w|[.,:/-]\d)",
    re.ASCII,
)
PHONE_DIGITS = (8, 15)  # with the country's code, ITU-T E.164
IP4 = re.compile(r"(?<![\w.+-])\d{1,3}+(?:\.\d{1,3}+){3}(?![\w-]|\.\d)", re.ASCII)
IP6 = re.compile(
    r"(?<![\w:.])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{1,33}[0-9A-Fa-f](?!\w|[.:]\w)",
    re.ASCII,
)
CARD = re.compile(
    r"(?<![\w.+-])(?:\d{12,19}+|\d{4}([ \xa0-])\d{4}\1\d{4}\1\d{1,7}+"
    r"|\d{4}([ \xa0-])\d{6}\2\d{4,5}+)(?![\w-]|\.\d)",
    re.ASCII,
)
# Prefix → lengths: American Express, Diners, Discover, JCB, Mastercard, UnionPay, Visa.
CARD_KINDS = re.compile(
    r"3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}|6(?:011|4[4-9]\d|5\d\d)\d{12}"
    r"|35(?:2[89]|[3-8]\d)\d{12}|5[1-5]\d{14}|62\d{14,17}"
    r"|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|4(?:\d{12}|\d{15}|\d{18})"
)
IBAN = re.compile(r"(?<![A-Za-z0-9])([A-Z]{2})\d\d(?=[ \xa0]?[A-Z0-9])")
# Country → length, from the registry of ISO 13616.
IBAN_LENGTHS = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 "
    "DK18 DO28 EE20 EG29 ES24 FI18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 "
    "IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 "
    "MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 "
    "SC31 SE24 SI19 SK24 SM27 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20"
)

Mask = Callable[[str], tuple[str, int]]


def email(text: str) -> tuple[str, int]:
    """Returns `text` with `<EMAIL>` for each address, and how many there were."""
    return EMAIL.subn("<EMAIL>", text)


def phone(text: str) -> tuple[str, int]:
    """Returns `text` with `<PHONE>` for each telephone number, and their count.

    Of 8 to 15 digits, written with a country's code, in North America's form, or with
    a leading zero and in groups. Other runs of digits are left alone.
    """

    def valid(number: str) -> bool:
        least, most = PHONE_DIGITS
        return least <= len(_digits(number)) <= most + 2  # "00" is not of the number

    return _replace(PHONE, text, "<PHONE>", valid)


def ip(text: str) -> tuple[str, int]:
    """Returns `text` with `<IP>` for each public address, and how many there were.

    Version 4 and 6. Private, local and reserved addresses (192.168.0.1, 2001:db8::1)
    name no one and stay. So does one with fewer than two numbers above nine: most of
    these are sections and versions (11.7.3.2), and one address in 3,000.
    """

    def valid(address: str) -> bool:
        large = sum(len(number) > 1 for number in address.split("."))
        return large > 1 and _is_public(address)

    text, count = _replace(IP4, text, "<IP>", valid)
    text, more = _replace(IP6, text, "<IP>", _is_public)
    return text, count + more


def card(text: str) -> tuple[str, int]:
    """Returns `text` with `<CARD>` for each number of a payment card, and their count.

    A number has the prefix and length of a network and the check digit of Luhn.
    """

    def valid(number: str) -> bool:
        digits = _digits(number)
        return CARD_KINDS.fullmatch(digits) is not None and passes_luhn(digits)

    return _replace(CARD, text, "<CARD>", valid)


def iban(text: str) -> tuple[str, int]:
    """Returns `text` with `<IBAN>` for each bank account, and how many there were.

    An account has its country's length and the check digits of ISO 7064 (modulo 97).
    """
    lengths = {entry[:2]: int(entry[2:]) for entry in IBAN_LENGTHS.split()}
    parts: list[str] = []
    done = 0
    for match in IBAN.finditer(text):
        end = _end_of_account(text, match.start(), lengths.get(match[1], 0))
        if match.start() >= done and end:
            parts += [text[done : match.start()], "<IBAN>"]
            done = end
    return "".join([*parts, text[done:]]), len(parts) // 2


# In the order in which they are applied: a card is not to be taken for a telephone.
MASKS: dict[str, Mask] = {
    "email": email,
    "iban": iban,
    "card": card,
    "ip": ip,
    "phone": phone,
}


def mask(text: str, names: Iterable[str] = tuple(MASKS)) -> tuple[str, dict[str, int]]:
    """Returns `text` after those masks, in the order of `MASKS`, and their counts."""
    chosen = {name: pick(MASKS, name, "mask") for name in names}
    counts = {}
    for name in MASKS:
        if name in chosen:
            text, counts[name] = chosen[name](text)
    return text, counts


def passes_luhn(digits: str) -> bool:
    """Returns whether the last digit is the check digit of the others (ISO 7812)."""
    doubled = [sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2]]
    return (sum(doubled) + sum(map(int, digits[-1::-2]))) % 10 == 0


def passes_mod_97(account: str) -> bool:
    """Returns whether an IBAN without blanks has the right check digits (ISO 7064)."""
    number = "".join(str(int(sign, 36)) for sign in account[4:] + account[:4])
    return int(number) % 97 == 1


def _end_of_account(text: str, start: int, length: int) -> int:
    """Returns where the account that starts at `start` ends, or 0 where none does."""
    account, position = "", start
    while len(account) < length and position < len(text):
        sign = text[position]
        if sign.isascii() and (sign.isdigit() or sign.isupper()):
            account += sign
        elif sign not in " \xa0" or text[position - 1] in " \xa0":
            return 0
        position += 1
    after = text[position : position + 1]
    goes_on = after.isascii() and after.isalnum()
    if not length or len(account) < length or goes_on or not passes_mod_97(account):
        return 0
    return position


def _digits(number: str) -> str:
    return "".join(filter(str.isdecimal, number))


def _is_public(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
        return parsed.is_global and not parsed.is_multicast
    except ValueError:
        return False


def _replace(
    pattern: re.Pattern[str], text: str, placeholder: str, valid: Callable[[str], bool]
) -> tuple[str, int]:
    """Returns `text` with the valid matches replaced, and how many there were."""
    count = 0

    def one(match: re.Match[str]) -> str:
        nonlocal count
        if not valid(match[0]):
            return match[0]
        count += 1
        return placeholder

    return pattern.sub(one, text), count
