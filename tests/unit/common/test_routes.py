"""The allow-list of the channel: twelve operations, Flower's own headers, 8 MiB."""

import pytest

from fedward_common.channel.refusals import EXPLANATIONS, Refusal, explain_refusal
from fedward_common.channel.routes import (
    MAX_BODY_BYTES,
    ROUTES,
    CallRefused,
    check_body,
    check_headers,
    check_route,
    reply_headers,
    request_headers,
)

GOOD = {
    "flwr-public-key": "LS0tLS1CRUdJTg==",
    "flwr-signature": "MGUCMQ==",
    "flwr-timestamp": "2026-11-20T10:00:00.123456+00:00",
    "flwr-package-name": "flwr",
    "flwr-package-version": "1.41.0",
    "flwr-component-name": "SuperNode",
}


def test_there_are_twelve_operations() -> None:
    assert len(ROUTES) == 12


@pytest.mark.parametrize(
    "route",
    ["", "list-nodes", "/v1/control/list-nodes", "../control/list-nodes", "pull-messages/", "docs"],
)
def test_any_other_route_is_refused(route: str) -> None:
    with pytest.raises(CallRefused) as caught:
        check_route(route)

    assert caught.value.refusal is Refusal.ROUTE


def test_a_body_of_8_mib_passes_and_one_byte_more_is_refused() -> None:
    check_body(bytes(MAX_BODY_BYTES))

    with pytest.raises(CallRefused) as caught:
        check_body(bytes(MAX_BODY_BYTES + 1))
    assert caught.value.refusal is Refusal.BODY_TOO_LARGE


def test_flowers_own_headers_pass() -> None:
    check_headers(GOOD)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("flwr-task-token", "x"),
        ("authorization", "Bearer x"),
        ("flwr-timestamp", "patient 17 is positive"),
        ("flwr-package-name", "x" * 65),
        ("flwr-public-key", "A" * 2000),
        ("flwr-public-key", "AAAA\n"),
        ("flwr-signature", ""),
    ],
)
def test_a_free_header_is_refused(name: str, value: str) -> None:
    with pytest.raises(CallRefused) as caught:
        check_headers({**GOOD, name: value})

    assert caught.value.refusal is Refusal.HEADER


def test_only_flowers_headers_are_taken_from_a_request() -> None:
    assert request_headers({**GOOD, "host": "127.0.0.1", "cookie": "x"}) == GOOD


def test_only_flowers_headers_are_taken_from_a_reply() -> None:
    text = "flwr-version-incompatibility-message"

    assert reply_headers({text: "upgrade", "server": "uvicorn"}) == {text: "upgrade"}
    assert reply_headers({text: "two\nlines"}) == {}


def test_every_refusal_has_its_sentence_and_an_unknown_code_is_not_repeated() -> None:
    assert set(EXPLANATIONS) == set(Refusal)
    assert explain_refusal("rm -rf /") == "a reason that this version does not know"
