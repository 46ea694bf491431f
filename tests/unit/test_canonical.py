"""Canonical JSON: one text for one value, and what hostile text is told."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelsync.core import canonical
from modelsync.core.errors import MalformedMessage

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALARS = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | TEXT
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=20
)
WITH_FLOATS = st.recursive(
    SCALARS | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT.filter(lambda key: key != "$float"), inner),
    max_leaves=20,
)


@given(VALUES)
def test_a_value_and_its_text_are_one(value: Any) -> None:
    data = canonical.encode(value)
    assert canonical.decode_canonical(data, "test") == value
    assert canonical.encode(json.loads(data)) == data


@given(WITH_FLOATS)
def test_floats_come_back_as_they_were(value: Any) -> None:
    data = canonical.encode(canonical.with_floats_tagged(value))
    assert canonical.with_floats_restored(canonical.decode(data, "test")) == value


@given(st.binary(max_size=40))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    try:
        value = canonical.decode_canonical(data, "test")
    except MalformedMessage as error:
        assert error.what == "test"
    else:
        assert canonical.encode(value) == data


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": [True, None]}, b'{"a":[true,null],"b":1}'),
        ({"\U0001f600": 1, "\uffff": 2}, '{"\uffff":2,"\U0001f600":1}'.encode()),  # by code point, not by UTF-16 unit
        ('a\u0001"\\/é', b'"a\\u0001\\"\\\\/\xc3\xa9"'),
        (-(2**53) + 1, b"-9007199254740991"),
    ],
)
def test_the_text(value: Any, text: bytes) -> None:
    assert canonical.encode(value) == text


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (0.5, "a value of type float"),
        ((1, 2), "a value of type tuple"),
        ({1: 2}, "a key is not text"),
        (2**53, "an integer is beyond 2^53-1"),
        (["\ud800"], "a lone surrogate, which is not text"),
        ({"\udfff": 1}, "a lone surrogate, which is not text"),
    ],
)
def test_what_is_not_written(value: Any, reason: str) -> None:
    with pytest.raises(MalformedMessage) as caught:
        canonical.encode(value)
    assert caught.value.details() == {"what": "document", "reason": reason}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"a":1,"a":2}', "a key stands twice in one object"),
        (b"[0.5]", "0.5 is not a whole number"),
        (b"1e3", "1e3 is not a whole number"),
        (b"NaN", "NaN is not a whole number"),
        (b"-Infinity", "-Infinity is not a whole number"),
        (b"9007199254740992", "an integer is beyond 2^53-1"),
        (b"1" * 5000, "an integer is beyond 2^53-1"),
        (b'"\\ud800"', "a lone surrogate, which is not text"),
        (b"[" * 33 + b"]" * 33, "nested deeper than 32 levels"),
        (b"[" * 200_000, "nested too deeply"),
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b"1 2", "Extra data: line 1 column 3 (char 2)"),
        (b"\xef\xbb\xbf1", "Unexpected UTF-8 BOM (decode using utf-8-sig): line 1 column 1 (char 0)"),
    ],
)
def test_hostile_texts(data: bytes, reason: str) -> None:
    with pytest.raises(MalformedMessage) as caught:
        canonical.decode(data, "thing")
    assert caught.value.details() == {"what": "thing", "reason": reason}


def test_32_levels_are_parsed() -> None:
    assert canonical.encode(canonical.decode(b"[" * 32 + b"1" + b"]" * 32, "thing")) == b"[" * 32 + b"1" + b"]" * 32


def test_text_that_is_not_utf8_or_too_large() -> None:
    with pytest.raises(MalformedMessage, match="can't decode byte 0xff"):
        canonical.decode(b'"\xff"', "thing")
    with pytest.raises(MalformedMessage, match="11 bytes, at most 10 are read"):
        canonical.decode(b"12345678901", "thing", max_bytes=10)


@pytest.mark.parametrize("data", [b"[1, 2]", b'{"b":1,"a":2}', b'"\\u0041"', b"-0", b" 1", b"1\n"])
def test_a_second_spelling_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessage) as caught:
        canonical.decode_canonical(data, "thing")
    assert caught.value.reason == "it is JSON, but not the canonical text of its value"


class _Loud(float):
    def __repr__(self) -> str:
        return f"loud({float(self)})"


def test_tags_of_floats() -> None:
    tagged = canonical.with_floats_tagged({"a": _Loud(0.1), "b": (1, math.inf), "c": math.nan})
    assert tagged == {"a": {"$float": "0.1"}, "b": [1, {"$float": "inf"}], "c": {"$float": "nan"}}
    back = canonical.with_floats_restored(tagged)
    assert (back["a"], back["b"]) == (0.1, [1, math.inf])
    assert math.isnan(back["c"])


@pytest.mark.parametrize("text", ["", "abc", "1", "1_000.0", " 1.0", "1e2", "Infinity", "0x1p3"])
def test_a_tag_that_we_did_not_write_is_the_users_own(text: str) -> None:
    value = {"$float": text}
    assert canonical.with_floats_restored(value) == value
    assert canonical.with_floats_tagged(canonical.with_floats_restored(value)) == value
