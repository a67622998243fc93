"""A hospital of a secure study that lies: it loses its own part, and no other hospital pays."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedward_common.canonical import sha256_hex
from fedward_common.ids import SiteId
from fedward_common.log.events import read_events
from fedward_common.secagg.messages import Advert, Adverts, Envelopes, Keys, Opened, Session
from fedward_common.wire import Envelope, Instruction, Reply
from tests.support.secure_federation import Federation, federation

LIAR, VICTIM = SiteId("s4"), SiteId("s1")
OTHERS = {SiteId(name) for name in ("s1", "s2", "s3")}


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Federation]:
    made = federation(tmp_path, sites=4, rounds=2, change={"releases": []})
    yield made
    made.close()


def lies(
    one: Federation, kind: str, change: Callable[[bytes], bytes], *, liar: SiteId = LIAR
) -> None:
    """From now on the liar's answers to `kind` are changed, under its own signature."""
    hospital, answer = one.hospitals[liar], one.hospitals[liar].answer

    def lying(envelope: Envelope) -> Envelope:
        said, asked = answer(envelope), Instruction.parse(envelope.header)
        if asked.kind != kind or Reply.parse(said.header).kind == "refusal":
            return said
        payload = change(said.blobs["payload"])
        reply = Reply.parse(said.header).model_copy(
            update={"payload_sha256": sha256_hex(payload), "signature": ""}
        )
        signature = hospital.key.sign(reply.signed_bytes).hex()
        header = reply.model_copy(update={"signature": signature}).canonical
        return Envelope(header=header, blobs={"payload": payload})

    object.__setattr__(hospital, "answer", lying)


def charges(one: Federation, site: SiteId) -> int:
    return sum(len(a.charges) for a in one.hospitals[site].service.ledger.accounts())


def test_one_site_s_unfit_keys_cost_the_others_no_round(one: Federation) -> None:
    """Its advert is not passed on: the others sum without it, in every round."""

    def change(payload: bytes) -> bytes:
        advert = Advert.parse(payload)
        members = one.run().secure._coordinator(advert.round).session.members
        session = Session(study=one.study.digest, round=advert.round, members=members)
        unsigned = advert.model_copy(update={"share_key": advert.mask_key, "signature": ""})
        signature = one.hospitals[LIAR].key.sign(unsigned.signed_bytes(session)).hex()
        return unsigned.model_copy(update={"signature": signature}).canonical

    lies(one, "advertise", change)

    result = one.run().run()

    assert result.committed_rounds == 2
    assert {site for fields in one.actions("round.committed") for site in fields["sites"]} == OTHERS
    lost = [(f["site"], f["reason"]) for f in one.actions("site.lost")]
    assert {site for site, _ in lost} == {LIAR}
    assert all("repeated-key" in reason for _, reason in lost)
    assert all(one.hospitals[site].refused == [] for site in OTHERS)
    assert charges(one, LIAR) == 0


def test_a_damaged_envelope_is_found_before_the_charge_and_its_sender_is_in_the_journal(
    one: Federation,
) -> None:
    def change(payload: bytes) -> bytes:
        sent = Envelopes.parse(payload)
        spoilt = dict(sent.boxes) | {VICTIM: "00" * 94}
        return sent.model_copy(update={"boxes": spoilt}).canonical

    lies(one, "share", change)

    result = one.run().run()

    assert result.committed_rounds >= 1
    assert one.hospitals[VICTIM].refused[0] == "envelope"
    noted = [
        event.fields
        for event in read_events(one.hospitals[VICTIM].running.service.log._path)  # type: ignore[attr-defined]
        if event.action in ("secagg.refused", "round.charged")
    ]
    assert (noted[0]["code"], noted[0]["site"], noted[0]["round"]) == ("envelope", LIAR, 1)
    assert not any("ledger_seq" in fields and fields["round"] == 1 for fields in noted)


def test_a_step_of_a_dead_set_up_does_not_end_the_part_in_the_one_that_is_alive(
    one: Federation,
) -> None:
    study, victim = one.study, one.hospitals[VICTIM]
    signed = one.run().signed_study
    keys = Keys(keys={site: h.key.public_hex for site, h in one.hospitals.items()})

    def ask(site: SiteId, kind: str, attempt: int, message: Any) -> Envelope:
        asked = Instruction.model_validate(
            {
                "kind": kind,
                "study": study.digest,
                "round": 1,
                "attempt": attempt,
                "model_sha256": sha256_hex(message.canonical),
                "cohort": list(one.hospitals),
                "roster_sha256": study.roster_sha256,
            }
        )
        blobs = {"study": signed, "model": message.canonical}
        return one.hospitals[site].answer(Envelope(header=asked.canonical, blobs=blobs))

    def adverts(attempt: int) -> Adverts:
        said = [ask(site, "advertise", attempt, keys).blobs["payload"] for site in one.hospitals]
        return Adverts(adverts=tuple(Advert.parse(payload) for payload in said))

    dead = adverts(1)
    alive = adverts(2)

    for kind, message in (("share", dead), ("advertise", keys)):
        assert Reply.parse(ask(VICTIM, kind, 1, message).header).kind == "refusal"

    assert victim.refused == ["phase", "phase"]
    assert Envelopes.parse(ask(VICTIM, "share", 2, alive).blobs["payload"]).site == VICTIM


def test_one_site_s_wrong_shares_cost_no_round_and_are_told(one: Federation) -> None:
    """The site of the lowest number lies: its shares would be the first to be used."""

    def change(payload: bytes) -> bytes:
        opened = Opened.parse(payload)
        wrong = dict.fromkeys(opened.unmasking.own_masks, "00" * 33)
        unmasking = opened.unmasking.model_copy(update={"own_masks": wrong})
        return opened.model_copy(update={"unmasking": unmasking}).canonical

    lies(one, "unmask", change, liar=VICTIM)

    result = one.run().run()

    assert result.committed_rounds == 2
    assert {fields["site"] for fields in one.actions("site.wrong-shares")} == {VICTIM}
