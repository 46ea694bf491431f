"""The multipart parser: the same events however the bytes are cut, and nothing lenient."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelsync.core.errors import MalformedMessage
from modelsync.edges.http.multipart import (
    MAX_HEAD_BYTES,
    MultipartParser,
    PartData,
    PartEnded,
    PartStarted,
    boundary_of,
)

B = b"XyZ"


def part(head: bytes, content: bytes) -> bytes:
    return b"--" + B + b"\r\n" + head + b"\r\n\r\n" + content + b"\r\n"


def file_head(filename: str) -> bytes:
    return f'Content-Disposition: form-data; name="file"; filename="{filename}"'.encode()


END = b"--" + B + b"--\r\n"


def parse(*pieces: bytes) -> list[tuple[str, str | None, bytes]]:
    """(name, filename, content) of each part, the body being fed in these pieces."""
    parser, parts = MultipartParser(B), []
    for piece in pieces:
        for event in parser.feed(piece):
            if isinstance(event, PartStarted):
                parts.append((event.name, event.filename, bytearray()))
            elif isinstance(event, PartData):
                parts[-1][2].extend(event.data)
            else:
                assert isinstance(event, PartEnded)
    parser.finish()
    return [(name, filename, bytes(content)) for name, filename, content in parts]


CONTENT = st.one_of(
    st.binary(max_size=60),
    st.lists(st.sampled_from([b"\r\n", b"--", B, b"\r", b"\n", b"-", b"X", b"\r\n--Xy"]), max_size=12).map(b"".join),
).filter(lambda data: b"\r\n--" + B not in b"\r\n" + data)


@given(contents=st.lists(CONTENT, max_size=4), cuts=st.lists(st.integers(0, 400), max_size=12))
def test_any_cut_gives_the_same_parts(contents: list[bytes], cuts: list[int]) -> None:
    body = b"".join(part(file_head(f"f{n}"), content) for n, content in enumerate(contents)) + END
    edges = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    pieces = [body[a:b] for a, b in pairwise(edges)]
    assert parse(*pieces) == [("file", f"f{n}", content) for n, content in enumerate(contents)]


def test_one_byte_at_a_time() -> None:
    body = part(b'Content-Disposition: form-data; name="note"', b"a\r\n-\r\n--b") + part(file_head("x"), b"") + END
    assert parse(*(body[at : at + 1] for at in range(len(body)))) == [
        ("note", None, b"a\r\n-\r\n--b"),
        ("file", "x", b""),
    ]


@pytest.mark.parametrize(
    ("head", "filename"),
    [
        (file_head("../../etc/passwd"), "../../etc/passwd"),
        (file_head("/etc/passwd"), "/etc/passwd"),
        (b'Content-Disposition: form-data; name="f"; filename="C:\\\\x"', "C:\\x"),
        ("Content-Disposition: form-data; name=f; filename=zwölf.bin".encode(), "zwölf.bin"),
        (b"Content-Disposition: form-data; name=f; filename*=UTF-8''zw%C3%B6lf", "zwölf"),
        (b"content-disposition: FORM-DATA; NAME=f; FILENAME=x", "x"),
        (b'Content-Disposition: form-data; name="f"; filename=""', ""),
        (b'Content-Disposition: form-data; name="f"; filename="a\x00b"', "a\x00b"),
    ],
)
def test_a_file_name_comes_out_as_it_was_given(head: bytes, filename: str) -> None:
    """Whoever checks it must see what the sender wrote, above all what makes it absolute."""
    assert parse(part(head, b"1") + END)[0][1] == filename


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b"x" * 5000,
        b"--" + B,
        b"--" + B + b"junk\r\n\r\n",
        part(file_head("x"), b"1"),
        part(file_head("x"), b"1") + b"--" + B + b"-",
        part(b"", b"1") + END,
        part(b"no colon", b"1") + END,
        part(b"Content-Type: text/plain", b"1") + END,
        part(b"Content-Disposition: attachment; filename=x", b"1") + END,
        part(file_head("x") + b"\r\n" + file_head("y"), b"1") + END,
        part(file_head("x") + b"\r\nContent-Transfer-Encoding: base64", b"MQ==") + END,
        part(file_head("x") + b"\r\nContent-Encoding: gzip", b"1") + END,
        part(file_head("x") + b"\r\nContent-Type: multipart/mixed; boundary=q", b"1") + END,
        part(b"Content-Disposition: form-data; name=f; filename=\xff\xfe", b"1") + END,
        part(b"Content-Disposition: form-data; name=f; filename*=UTF-16''%00", b"1") + END,
        part(b"X: " + b"y" * MAX_HEAD_BYTES + b"\r\n" + file_head("x"), b"1") + END,
    ],
)
def test_malformed_bodies_are_refused(body: bytes) -> None:
    with pytest.raises(MalformedMessage):
        parse(body)


def test_an_endless_head_is_refused_before_it_is_held() -> None:
    parser = MultipartParser(B)
    with pytest.raises(MalformedMessage):
        for piece in [b"--" + B + b"\r\n", *[b"x" * 1024] * 1000]:
            list(parser.feed(piece))
    assert len(parser._buffer) < 2 * MAX_HEAD_BYTES


def test_content_is_passed_on_and_not_held() -> None:
    parser = MultipartParser(B)
    list(parser.feed(b"--" + B + b"\r\n" + file_head("x") + b"\r\n\r\n"))
    for _ in range(100):
        list(parser.feed(b"\r" * 65536))
        assert len(parser._buffer) < 100


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        f"multipart/form-data; boundary={'x' * 71}",
        'multipart/form-data; boundary="a\\"b"',
        "multipart/form-data; boundary=ü",
    ],
)
def test_a_bad_boundary_is_refused(content_type: str) -> None:
    with pytest.raises(MalformedMessage):
        boundary_of(content_type)


def test_a_quoted_boundary_is_taken() -> None:
    assert boundary_of('multipart/form-data; boundary="a b:c"') == b"a b:c"
