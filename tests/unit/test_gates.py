"""Windows, rejections and what servers are told: decided without a server, a clock or a disk."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tests.unit.test_catalog import record

from modelsync.core import catalog, catalog_fields, find, gates, hooks, views
from modelsync.core.catalog import WishChange
from modelsync.core.errors import BadName, HookFailed, MalformedMessage
from modelsync.core.gates import Health, Rejection, Window
from modelsync.core.hooks import Hook, Request, Told
from modelsync.core.ids import Digest, EntryId, ModelName, Version

HEALTH = Health(url="http://s/ready", ready_s=10, window_s=5, failures=2)
FRAUD = ModelName("fraud")


@pytest.mark.parametrize(
    ("probes", "verdict", "reason"),
    [
        ([(0, None)], "going on", ""),
        ([(0, None), (5, None)], "healthy", ""),
        ([(9, "no"), (9.5, None), (14.4, None)], "going on", "no"),
        ([(9, "no"), (9.5, None), (14.5, None)], "healthy", "no"),
        ([(9.9, "no")], "going on", "no"),
        ([(10, "no")], "failed", "not ready within 10 s: no"),
        ([(1, None), (2, "ill")], "going on", "ill"),
        ([(1, None), (2, "ill"), (3, None), (4, "ill")], "going on", "ill"),
        ([(1, None), (2, "ill"), (3, "ill")], "failed", "unhealthy 2.0 s after it was ready: ill"),
        (
            [(1, None), (2, "ill"), (3, "ill"), (4, None), (99, None)],
            "failed",
            "unhealthy 2.0 s after it was ready: ill",
        ),
    ],
)
def test_the_health_window(probes: list[tuple[float, str | None]], verdict: str, reason: str) -> None:
    window = Window(0.0)
    for at_s, fault in probes:
        window = gates.probed(window, HEALTH, fault, at_s)
    assert (window.verdict, window.reason) == (verdict, reason)


def test_without_a_window_ready_is_healthy() -> None:
    assert gates.probed(Window(0.0), replace(HEALTH, window_s=0), None, 1.0).verdict == "healthy"


def rejection(number: int = 2, asked: str = "1-2", pin: str = "") -> Rejection:
    return Rejection(FRAUD, Version(number), Digest(b"x" * 32), "load", "why", 1, EntryId.parse(asked), pin)


def change(at: str, command: str, wanted: int) -> WishChange:
    return WishChange(EntryId.parse(at), 1, "ada", command, Version(wanted))


@pytest.mark.parametrize(
    ("changes", "pin", "stands"),
    [
        ([], None, True),
        ([change("2-1", "update fraud 2", 2)], None, False),
        ([change("2-1", "pin fraud 2", 2)], None, False),
        ([change("2-1", "rollback fraud", 1)], None, True),  # somebody asked for another one
        ([change("2-1", "alias fraud stable 2", 2)], None, True),  # it only got a name
        ([change("2-1", "delete fraud 1", 2)], None, True),
        ([change("1-1", "update fraud 2", 2)], None, True),  # asked before it was rejected
        ([], 2, False),  # this host is pinned to it, and was not then
    ],
)
def test_a_rejection_stands_until_somebody_asks(changes: list[WishChange], pin: int | None, stands: bool) -> None:
    known = record(1, 2, 3)
    for item in changes:
        known = catalog.noted(known, item)
    known = catalog_fields.from_fields(FRAUD, catalog_fields.to_fields(known))
    assert gates.still_rejected(rejection(asked=str(known.versions[Version(2)].id)), known, pin) is stands
    assert not pin or gates.still_rejected(replace(rejection(), node_pin=str(pin), asked=EntryId(1, 9)), known, pin)


def test_changes_are_bounded() -> None:
    known = record(1)
    for at in range(catalog.MAX_CHANGES + 5):
        known = catalog.noted(known, change(f"2-{at + 1}", "pin fraud 1", 1))
    assert len(known.changes) == catalog.MAX_CHANGES and known.changes[-1].id == EntryId(2, catalog.MAX_CHANGES + 5)


def test_rejections_come_back_and_nonsense_does_not() -> None:
    many = [rejection(number) for number in range(1, gates.MAX_REJECTIONS + 4)]
    assert gates.from_json(gates.to_json(many)) == many[-gates.MAX_REJECTIONS :]
    for data in (b"", b"{", b"{}x", b'[{"model":"fraud"}]', b"[1]", b'[{"model":"../x","version":1}]'):
        with pytest.raises(MalformedMessage):
            gates.from_json(data)


def test_a_reason_keeps_its_beginning_and_its_end() -> None:
    assert gates.shortened("a\x1b[2J\n b") == "a [2J b"
    short = gates.shortened("timed out: " + "y " * 5000 + "the error")
    assert short.startswith("timed out") and short.endswith("the error") and len(short) < 1010


# --- what servers are told --------------------------------------------------------------------------------------------

TOLD = Told("fraud", 12, "b3:00", "/trees/12")


def sent(hook: Hook) -> list[tuple[str, str, str]]:
    return [(r.method, r.url, r.body.decode()) for r in hooks.requests(hook, TOLD)]


@pytest.mark.parametrize(
    ("hook", "wanted"),
    [
        (
            Hook("triton", "http://t:8000/"),
            [
                ("POST", "http://t:8000/v2/repository/models/fraud/load", "{}"),
                ("POST", "http://t:8000/v2/repository/index", "{}"),
                ("GET", "http://t:8000/v2/models/fraud/versions/12/ready", ""),
            ],
        ),
        (Hook("tfserving", "http://t"), [("GET", "http://t/v1/models/fraud/versions/12", "")]),
        (
            Hook("mlserver", "http://m", name="fr/aud"),
            [
                ("POST", "http://m/v2/repository/models/fr%2Faud/load", ""),
                ("GET", "http://m/v2/models/fr%2Faud/ready", ""),
            ],
        ),
        (
            Hook("vllm", "http://v", name="adapter"),
            [
                (
                    "POST",
                    "http://v/v1/load_lora_adapter",
                    '{"lora_name": "adapter", "lora_path": "/trees/12", "load_inplace": true}',
                ),
                ("GET", "http://v/health", ""),
            ],
        ),
        (
            Hook("vllm", "http://v"),
            [
                ("POST", "http://v/sleep?level=2", ""),
                ("POST", "http://v/wake_up?tags=weights", ""),
                ("POST", "http://v/collective_rpc", '{"method": "reload_weights"}'),
                ("POST", "http://v/wake_up?tags=kv_cache", ""),
                ("GET", "http://v/health", ""),
            ],
        ),
        (
            Hook("sglang", "http://s"),
            [
                ("POST", "http://s/update_weights_from_disk", '{"model_path": "/trees/12", "flush_cache": true}'),
                ("GET", "http://s/health", ""),
            ],
        ),
        (
            Hook("url", "http://u/{model}", "PUT", '{"v": {version}, "o": {}}'),
            [("PUT", "http://u/fraud", '{"v": 12, "o": {}}')],
        ),
        (Hook("command", command=("/bin/true",)), []),
    ],
)
def test_what_each_server_is_sent(hook: Hook, wanted: list[tuple[str, str, str]]) -> None:
    assert sent(hook) == wanted


def index(**line: object) -> bytes:
    return json.dumps([{"name": "other", "version": "12", "state": "UNAVAILABLE"}, line]).encode()


@pytest.mark.parametrize(
    ("expect", "status", "data", "fault"),
    [
        ("success", 200, b"", None),
        ("success", 204, b"x", None),
        ("success", 302, b"", "answered 302"),
        ("success", 503, b"busy", "busy"),
        ("json-success", 200, b'{"success": true}', None),
        ("json-success", 200, b'{"success": false, "message": "no memory"}', "no memory"),
        ("json-success", 200, b"[]", "answered"),
        ("json-success", 200, b"<html>", "no JSON"),
        ("tfs", 200, b'{"model_version_status": [{"state": "AVAILABLE"}]}', None),
        ("tfs", 200, b'{"model_version_status": [{"state": "LOADING"}]}', "LOADING"),
        ("tfs", 200, b'{"model_version_status": 3}', "unknown"),
        ("tfs", 404, b"{}", "404"),
        ("index:fraud:12", 200, index(name="fraud", version="12", state="READY"), None),
        ("index:fraud:12", 200, index(name="fraud", version="11", state="UNAVAILABLE"), None),
        ("index:fraud:12", 200, index(name="fraud", version="12", state="UNAVAILABLE", reason="bad"), "bad"),
        ("index:fraud:12", 200, b'{"a": 1}', None),
        ("index:fraud:12", 200, b"[" * 5000, "no JSON"),
    ],
)
def test_which_answer_counts(expect: str, status: int, data: bytes, fault: str | None) -> None:
    found = hooks.satisfied(Request("GET", "http://x", expect=expect), status, data)
    assert found is None if fault is None else found is not None and fault in found


# --- what servers are shown -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "final"),
    [
        (b'{"model_version_status": [{"state": "END", "status": {"error_message": "no model"}}]}', True),
        (b'{"model_version_status": [{"state": "END", "status": {"error_message": ""}}]}', False),  # unloaded before
        (b'{"model_version_status": [{"state": "LOADING", "status": {"error_message": "x"}}]}', False),
        (b'{"model_version_status": [3]}', False),
        (b"[" * 5000, False),
    ],
)
def test_a_version_that_tensorflow_serving_could_not_load_is_not_waited_for(data: bytes, final: bool) -> None:
    request = Request("GET", "http://s", expect="tfs", repeat=True)
    assert hooks.is_final(request, data) is final
    assert (hooks.satisfied(request, 200, data) or "").endswith("no model") is final


def test_tritons_configuration_names_one_version() -> None:
    assert views.triton_config(None, 12, ["fraud.onnx"]) == (
        'default_model_filename: "fraud.onnx"\nversion_policy: { specific: { versions: [ 12 ] } }\n'
    )
    own = 'name: "fraud"\nversion_policy: {\n  latest { num_versions: 2 }\n}\nbackend: "onnxruntime"\n'
    made = views.triton_config(own, 12, ["config.pbtxt", "model.onnx"])
    assert "latest" not in made and made.count("version_policy") == 1 and 'backend: "onnxruntime"' in made
    assert made == views.triton_config(made, 12, ["config.pbtxt", "model.onnx"])


def test_tensorflow_servings_configuration_names_one_version_of_each_model() -> None:
    blocks = {name: views.tfs_block(name, f"/v/{name}", number) for name, number in (("b", 2), ("a", 7))}
    text = views.tfs_config(blocks)
    assert text.index('"a"') < text.index('"b"') and "versions: 7" in text and text.startswith("model_config_list {")


@pytest.mark.parametrize(
    ("template", "files", "uri"),
    [
        (None, ["fraud.joblib"], "/t/fraud.joblib"),
        (None, ["notes.txt", "m.pkl"], "/t/m.pkl"),
        ({"implementation": "x.Y"}, ["a", "b"], "/t"),
        ({"implementation": "x.Y", "parameters": {"uri": "./sub/m", "version": "9"}}, ["sub/m"], "/t/sub/m"),
        ({"implementation": "x.Y", "parameters": {"uri": "s3://b/m"}}, ["a"], "s3://b/m"),
    ],
)
def test_mlservers_settings_name_the_tree_and_no_version(
    template: dict[str, object] | None, files: list[str], uri: str
) -> None:
    made = json.loads(views.mlserver_settings(template, "fraud", "/t", files))
    assert made["parameters"] == {"uri": uri} and made["name"] == "fraud" and made["implementation"]


def test_mlserver_is_shown_nothing_that_it_cannot_load() -> None:
    for files in (["a.bin"], ["a.joblib", "b.joblib"], []):
        with pytest.raises(HookFailed):
            views.mlserver_settings(None, "fraud", "/t", files)


# --- finding ----------------------------------------------------------------------------------------------------------

FIELDS = {"auc": 0.91, "params": {"depth": 8, "kernel": None}, "tags": ["prod", 3], "a.b": 1, "ok": True, "note": "hi"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("auc>=0.9", True), ("auc>0.91", False), ("auc<1", True), ("auc<=0.91", True), ("auc=0.910", True),
        ("auc!=0.5", True), ("params.depth=8", True), ("params.depth = 8.0", True), ("params.kernel=null", True),
        ("params.none=1", False), ("params.none!=1", False), ("tags=prod", True), ("tags=3", True), ("tags=x", False),
        ("a.b=1", True), ("ok=true", True), ("ok>0", False), ("note>ha", True), ("note=h=i", False), ("auc=x", False),
        ("tags>1", False),
    ],
)  # fmt: skip
def test_conditions_on_metadata(text: str, found: bool) -> None:
    assert find.satisfies(FIELDS, find.parse(text)) is found


@pytest.mark.parametrize("text", ["", "auc", "=3", "x" * 2000 + "=1"])
def test_what_is_no_condition(text: str) -> None:
    with pytest.raises(BadName):
        find.parse(text)
