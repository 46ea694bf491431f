"""What names in the models directory mean. Facts in, items and refusals out; no disk."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelsync.core.sources import layout
from modelsync.core.sources.layout import Entry, Item, Layout, interpret
from modelsync.core.sources.names import is_ignored, model_of, shown

CAPACITY = 1 << 40


def file(path: str, size_bytes: int = 10, at_ns: int = 100, **more: object) -> Entry:
    return Entry(path, "file", size_bytes, at_ns, at_ns, inode=abs(hash(path)), mode=0o644, **more)  # type: ignore[arg-type]


def folder(path: str, at_ns: int = 100) -> Entry:
    return Entry(path, "directory", mtime_ns=at_ns, ctime_ns=at_ns)


def read(*entries: Entry, capacity_bytes: int = CAPACITY) -> Layout:
    """Everything that was given, the top and below it, as one full scan would hand it over."""
    top = [entry for entry in entries if "/" not in entry.path]
    trees = {t.path: [entry for entry in entries if entry.path.startswith(t.path + "/")] for t in top}
    return interpret({t.path: t.kind for t in top}, top, trees, capacity_bytes)


def only(found: Layout) -> Item:
    assert found.refusals == {}
    (item,) = found.items
    return item


def keys(found: Layout) -> list[str]:
    return sorted(item.key for item in found.items)


# --- the three layouts ------------------------------------------------------------------------------------------------


def test_a_directory_is_a_model_and_its_paths_are_relative_to_it() -> None:
    item = only(read(folder("fraud"), file("fraud/model.bin"), folder("fraud/tok"), file("fraud/tok/vocab.txt")))
    assert (item.model, item.version, item.key, item.base) == ("fraud", None, "fraud", "fraud")
    assert [source.path for source in item.files] == ["model.bin", "tok/vocab.txt"]


def test_a_single_file_is_a_model_named_without_its_suffix() -> None:
    item = only(read(file("fraud.v2.joblib")))
    assert (item.model, item.version, item.key, item.base) == ("fraud.v2", None, "fraud.v2.joblib", "")
    assert [source.path for source in item.files] == ["fraud.v2.joblib"]


def test_numbered_directories_are_versions_of_one_model() -> None:
    found = read(
        folder("fraud"),
        file("fraud/config.pbtxt"),
        file("fraud/_SUCCESS"),
        file("fraud/.hidden"),
        folder("fraud/7"),
        file("fraud/7/model.onnx"),
        folder("fraud/12"),
        file("fraud/12/model.onnx"),
    )
    assert [(item.model, item.version, item.base) for item in sorted(found.items, key=lambda i: i.version or 0)] == [
        ("fraud", 7, "fraud/7"),
        ("fraud", 12, "fraud/12"),
    ]
    assert all([source.path for source in item.files] == ["model.onnx"] for item in found.items)


@pytest.mark.parametrize("other", ["notes.txt", "labels/", "012/", "0/", "-1/", "1.0/", "9007199254740992/"])
def test_anything_else_beside_numbers_makes_it_one_plain_directory(other: str) -> None:
    name = "fraud/" + other.rstrip("/")
    extra = [folder(name), file(f"{name}/w.bin")] if other.endswith("/") else [file(name)]
    item = only(read(folder("fraud"), folder("fraud/12"), file("fraud/12/w.bin"), *extra))
    assert item.version is None and item.key == "fraud"
    assert "12/w.bin" in [source.path for source in item.files]


def test_a_file_with_a_number_for_a_name_is_no_version() -> None:
    assert only(read(folder("fraud"), file("fraud/12"))).version is None


def test_one_bad_version_does_not_hold_back_the_others() -> None:
    found = read(folder("m"), folder("m/1"), Entry("m/1/pipe", "fifo"), folder("m/2"), file("m/2/w.bin"))
    assert keys(found) == ["m/2"]
    assert found.refusals == {"m/1/pipe": "a FIFO, not a file"}


def test_only_what_was_asked_for_is_interpreted() -> None:
    found = interpret({"a.npy": "file", "b.npy": "file"}, [file("b.npy")], {}, CAPACITY)
    assert keys(found) == ["b.npy"]


# --- what is nothing at all -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [".fraud", ".fraud.joblib.Xy12Zq", "fraud.joblib.tmp", "a.PART", "a~", "a.swp", "a.crdownload", "lost+found"],
)
def test_hidden_and_temporary_names_are_ignored_without_a_word(name: str) -> None:
    assert is_ignored(name)
    assert read(file(name)) == Layout((), {})
    item = only(read(folder("fraud"), file("fraud/w.bin"), file("fraud/" + name)))
    assert [source.path for source in item.files] == ["w.bin"]


def test_a_file_below_a_hidden_directory_is_not_published_whatever_it_is() -> None:
    item = only(read(folder("m"), file("m/w.bin"), folder("m/.cache"), Entry("m/.cache/pipe", "fifo")))
    assert [source.path for source in item.files] == ["w.bin"]


def test_what_is_not_published_still_counts_as_change_and_as_written_to() -> None:
    item = only(read(folder("m"), file("m/w.bin", at_ns=5), file("m/.w2.bin.Ab12", at_ns=900)))
    assert item.newest_ns == 900
    assert [entry.path for entry in item.watched] == ["m/w.bin", "m/.w2.bin.Ab12"]


# --- markers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("marker", ["_SUCCESS", ".complete"])
def test_a_marker_is_seen_and_not_published(marker: str) -> None:
    item = only(read(folder("m"), file("m/w.bin", at_ns=100), file("m/" + marker, size_bytes=0, at_ns=100)))
    assert item.marked
    assert [source.path for source in item.files] == ["w.bin"]


def test_a_marker_older_than_a_file_is_left_over_and_says_nothing() -> None:
    assert not only(read(folder("m"), file("m/w.bin", at_ns=101), file("m/_SUCCESS", 0, at_ns=100))).marked


def test_a_marker_deeper_down_or_of_another_version_says_nothing() -> None:
    assert not only(read(folder("m"), file("m/w"), folder("m/sub"), file("m/sub/_SUCCESS", 0))).marked
    found = read(folder("m"), folder("m/1"), file("m/1/w"), file("m/1/_SUCCESS", 0), folder("m/2"), file("m/2/w"))
    assert {item.key: item.marked for item in found.items} == {"m/1": True, "m/2": False}


def test_a_marker_beside_the_versions_counts_for_those_it_is_not_older_than() -> None:
    found = read(
        folder("m"),
        file("m/_SUCCESS", 0, at_ns=100),
        folder("m/1"),
        file("m/1/w", at_ns=50),
        folder("m/2"),
        file("m/2/w", at_ns=150),
    )
    assert {item.key: item.marked for item in found.items} == {"m/1": True, "m/2": False}


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (Entry("fraud.joblib", "fifo"), "a FIFO"),
        (Entry("fraud", "socket"), "a socket"),
        (Entry("fraud.bin", "device"), "a device"),
        (Entry("fraud", "link", problem="a symbolic link to nothing"), "to nothing"),
        (Entry("fraud", "link", target="other/w.bin"), "leaves the model"),
        (Entry("fraud", "problem", problem="it cannot be looked at: Permission denied"), "Permission denied"),
        (file("fraud.joblib", size_bytes=0), "empty"),
        (file("notes.md"), "suffix"),
        (file("fraud"), "suffix"),
        (file("README.txt"), "text beside models"),
        (file("requirements.txt"), "text beside models"),
        (file("-x.joblib"), "model name"),
        (file("n" * 129 + ".npy"), "model name"),
        (file("caf\udce9.joblib"), "model name"),
        (file("new\nline.joblib"), "model name"),
        (folder("name with spaces"), "model name"),
    ],
)
def test_what_is_refused_at_the_top_says_why(entry: Entry, reason: str) -> None:
    found = read(entry)
    assert found.items == ()
    assert list(found.refusals) == [entry.path]
    assert reason in found.refusals[entry.path]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (Entry("m/x", "fifo"), "a FIFO"),
        (Entry("m/x", "link", problem="a symbolic link that leaves the models directory"), "leaves the models"),
        (Entry("m/x", "link", target="other/w.bin", size_bytes=4), "leaves the model"),
        (Entry("m/x", "link", target="m2/w.bin", size_bytes=4), "leaves the model"),
        (Entry("m/x", "problem", problem="a directory that cannot be read: Permission denied"), "cannot be read"),
        (file("m/new\nline"), "file name"),
        (file("m/\x1b[31m"), "file name"),
        (file("m/caf\udce9"), "file name"),
        (file("m/back\\slash"), "file name"),
        (file("m/" + "/".join(["d" * 200] * 21)), "4096"),
    ],
)
def test_one_bad_file_refuses_the_whole_directory(entry: Entry, reason: str) -> None:
    found = read(folder("m"), file("m/w.bin"), entry)
    assert found.items == ()
    assert reason in found.refusals[entry.path]


def test_a_link_to_a_file_of_the_same_model_is_that_file() -> None:
    item = only(
        read(
            folder("m"),
            folder("m/blobs"),
            file("m/blobs/abc", 4),
            Entry("m/w.bin", "link", 4, 1, 2, 3, 0o600, target="m/blobs/abc"),
        )
    )
    linked = next(source for source in item.files if source.path == "w.bin")
    assert (linked.size_bytes, linked.inode, linked.mode) == (4, 3, 0o600)
    assert [entry.target or entry.path for entry in item.watched] == ["m/blobs/abc", "m/blobs/abc"]


@pytest.mark.parametrize("inside", [[], [file("m/w.bin", 0)], [folder("m/sub")], [file("m/_SUCCESS", 5)]])
def test_a_directory_without_bytes_is_refused(inside: list[Entry]) -> None:
    found = read(folder("m"), *inside)
    assert found.items == ()
    assert "not empty" in found.refusals["m"]


def test_empty_files_are_fine_beside_one_that_is_not() -> None:
    item = only(read(folder("m"), file("m/__init__.py", 0), file("m/w.bin", 1)))
    assert [source.path for source in item.files] == ["__init__.py", "w.bin"]


def test_a_size_beyond_the_file_system_is_refused_also_in_sum() -> None:
    assert "more than its whole file system" in read(file("m.bin", CAPACITY + 1)).refusals["m.bin"]
    half = CAPACITY // 2 + 1
    assert "more than its whole" in read(folder("m"), file("m/a", half), file("m/b", half)).refusals["m"]
    assert read(file("m.bin", CAPACITY)).refusals == {}


def test_too_many_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MAX_FILES", 3)
    assert "more than 3 files" in read(folder("m"), *[file(f"m/{n}.bin") for n in range(4)]).refusals["m"]
    assert len(only(read(folder("m"), *[file(f"m/{n}.bin") for n in range(3)])).files) == 3


# --- two things, one name ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entries",
    [
        [file("fraud.joblib"), folder("fraud"), file("fraud/w.bin")],
        [file("fraud.joblib"), file("fraud.onnx")],
        [file("Fraud.joblib"), file("fraud.joblib")],
        [folder("Fraud"), file("Fraud/w"), folder("FRAUD"), file("FRAUD/w")],
    ],
)
def test_two_things_that_give_one_model_are_both_refused_by_name(entries: list[Entry]) -> None:
    found = read(*entries)
    tops = [entry.path for entry in entries if "/" not in entry.path]
    assert found.items == ()
    assert sorted(found.refusals) == sorted(tops)
    assert tops[1] in found.refusals[tops[0]]


@pytest.mark.parametrize("rival", ["fraud", "FRAUD", "Fraud.onnx", "fraud.tar.gz"])
@pytest.mark.parametrize("others", [0, 100])
def test_a_rival_counts_though_only_the_other_was_asked_for(rival: str, others: int) -> None:
    more = [file(f"m{number}.npy") for number in range(others)]
    kind: layout.Kind = "file" if "." in rival else "directory"
    names: dict[str, layout.Kind] = {"fraud.joblib": "file", rival: kind, "fraud.v2.npy": "file", "frau": "directory"}
    found = interpret({**names, **{m.path: "file" for m in more}}, [file("fraud.joblib"), *more], {}, CAPACITY)
    assert list(found.refusals) == ["fraud.joblib"] and rival in found.refusals["fraud.joblib"]
    assert len(found.items) == others


@pytest.mark.parametrize(
    "rival", [file(".fraud.joblib.X1"), file("fraud.md"), Entry("fraud", "link", problem="-"), file("fraud.joblib~")]
)
def test_what_could_never_be_a_model_is_no_rival(rival: Entry) -> None:
    assert keys(read(file("fraud.joblib"), rival)) == ["fraud.joblib"]


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("a.joblib", "a"),
        ("a.tar.gz", "a"),
        ("A.TAR.GZ", "A"),
        ("a.tar", "a"),
        ("a.tar.npy", None),
        ("a.b.ONNX", "a.b"),
        ("a", None),
        (".joblib", None),
        (".tar.gz", None),
        ("a.gz", None),
        ("a.md", None),
    ],
)
def test_the_model_of_a_file_name(name: str, model: str | None) -> None:
    assert model_of(name) == model


@given(st.binary(min_size=1, max_size=40))
def test_any_name_at_all_can_be_shown(raw: bytes) -> None:
    text = shown(raw.decode("utf-8", "surrogateescape"))
    assert text.encode("utf-8") and text.isprintable()


_NAMES = st.text(st.sampled_from("ab1.A_~/\n\udce9-"), min_size=1, max_size=12).filter(
    lambda text: not text.startswith("/") and not text.endswith("/") and "//" not in text
)


@given(st.lists(st.tuples(_NAMES, st.sampled_from(["file", "link", "fifo", "problem"]), st.integers(0, 3)), max_size=8))
def test_every_entry_is_published_refused_or_ignored_and_no_model_twice(raw: list[tuple[str, str, int]]) -> None:
    entries: dict[str, Entry] = {}
    for path, kind, size in raw:
        parts = path.split("/")
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            entries[parent] = folder(parent)
        if entries.get(path) is None:
            entries[path] = Entry(path, kind, size, 1, 1, problem="" if kind == "file" else "bad")  # type: ignore[arg-type]
    found = read(*(entries[path] for path in sorted(entries)))
    seen = [(item.model.lower(), item.version) for item in found.items]
    assert len(seen) == len(set(seen))
    for path in entries:
        if "/" in path or is_ignored(path):
            continue
        below = (path, path + "/")
        spoken_for = [*found.refusals, *(item.key for item in found.items)]
        assert any(key == path or key.startswith(below[1]) for key in spoken_for), path
