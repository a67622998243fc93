"""A coordinator that lies, against real guards and workers: each attack is refused by its name.

The attacks on the protocol alone are in test_hostile_secagg; here the whole site answers.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward_common.canonical import sha256_hex
from fedward_common.errors import ProtocolError
from fedward_common.ids import SiteId
from fedward_common.secagg.messages import (
    Adverts,
    Boxes,
    Keys,
    Message,
    Opened,
    Opening,
    Signed,
    Survivors,
)
from fedward_common.wire import Envelope, Instruction, Reply
from tests.support.secure_federation import Federation, federation

VICTIM = SiteId("s1")


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Federation]:
    made = federation(tmp_path, sites=4, rounds=2, change={"releases": []})
    yield made
    made.close()


def again(envelope: Envelope, message: Message, **fields: Any) -> Envelope:
    """The envelope with another message in it, and an instruction that names it."""
    asked = Instruction.parse(envelope.header)
    changed = {"model_sha256": sha256_hex(message.canonical), **fields}
    blobs = {**envelope.blobs, "model": message.canonical}
    return Envelope(header=asked.model_copy(update=changed).canonical, blobs=blobs)


def attack(
    one: Federation, kind: str, number: int, change: Callable[[Envelope], Envelope]
) -> list[str]:
    """Runs the study while the victim is asked otherwise once; why it left the sum."""

    def tamper(site: SiteId, envelope: Envelope) -> Envelope:
        asked = Instruction.parse(envelope.header)
        one.messages[asked.kind, asked.round] = envelope.blobs["model"]
        hit = (site, asked.kind, asked.round) == (VICTIM, kind, number)
        return change(envelope) if hit else envelope

    one.tamper = tamper
    one.run().run()
    return one.hospitals[VICTIM].refused


def answers(one: Federation, kind: str, number: int) -> dict[SiteId, Envelope]:
    """What the sites answered to a step."""
    return {
        site: answer
        for site, asked, answer in one.seen
        if (asked.kind, asked.round) == (kind, number)
    }


def test_a_key_that_the_study_does_not_name_is_refused(one: Federation) -> None:
    def change(envelope: Envelope) -> Envelope:
        keys = dict(Keys.parse(envelope.blobs["model"]).keys)
        return again(envelope, Keys(keys=keys | {"s2": "ab" * 32}))

    assert attack(one, "advertise", 1, change)[0] == "wrong-key"


def test_a_swapped_mask_key_is_refused(one: Federation) -> None:
    def change(envelope: Envelope) -> Envelope:
        adverts = list(Adverts.parse(envelope.blobs["model"]).adverts)
        adverts[1] = adverts[1].model_copy(update={"mask_key": adverts[2].share_key})
        return again(envelope, Adverts(adverts=tuple(adverts)))

    assert attack(one, "share", 1, change)[0] == "signature"


def test_adverts_of_an_old_round_are_refused_and_the_round_is_opened_all_the_same(
    one: Federation,
) -> None:
    def change(envelope: Envelope) -> Envelope:
        opening = Opening.parse(envelope.blobs["model"])
        old = Adverts.parse(one.messages["share", 1]).adverts
        return again(envelope, opening.model_copy(update={"adverts": old}))

    assert attack(one, "unmask", 1, change) == ["other-round"]
    assert len(one.actions("round.committed")) == 2


def test_a_sum_with_a_vector_is_not_set_up_again_when_later_ones_took_its_place(
    tmp_path: Path,
) -> None:
    """Its part in it is forgotten by then; that it gave a vector is not."""
    with closing(federation(tmp_path, sites=4, rounds=4, change={"releases": []})) as one:
        asked: list[Envelope] = []

        def keep(site: SiteId, envelope: Envelope) -> Envelope:
            found = Instruction.parse(envelope.header)
            if (site, found.kind, found.round) == (VICTIM, "advertise", 1):
                asked.append(envelope)
            return envelope

        one.tamper = keep
        one.lost = lambda _site, found: (found.kind, found.round) == ("sign", 1)
        result = one.run().run()
        victim = one.hospitals[VICTIM]
        message = Keys.parse(asked[0].blobs["model"])
        victim.answer(again(asked[0], message, attempt=7))

        assert result.committed_rounds == 3
        assert victim.refused == ["answered-before"]


@pytest.mark.parametrize(
    ("survivors", "reason"),
    [
        (("s1", "s2"), "too-few-survivors"),
        (("s2", "s3", "s4"), "survivors"),
        (("s1", "s2", "s3", "s9"), "survivors"),
    ],
)
def test_a_wrong_survivor_list_is_refused(
    one: Federation, survivors: tuple[str, ...], reason: str
) -> None:
    found = attack(one, "sign", 1, lambda e: again(e, Survivors(survivors=survivors)))

    assert found[0] == reason


def test_a_split_view_is_opened_by_nobody_who_saw_the_other_list(one: Federation) -> None:
    """The victim signs a list of three, the others one of four: nobody's signature fits."""
    split = Survivors(survivors=("s1", "s2", "s3"))
    replies: list[Reply] = []

    def tamper(site: SiteId, envelope: Envelope) -> Envelope:
        asked = Instruction.parse(envelope.header)
        if (site, asked.kind, asked.round) == (VICTIM, "sign", 1):
            return again(envelope, split)
        if (site, asked.kind, asked.round) == ("s2", "unmask", 1):
            replies.append(Reply.parse(one.hospitals[VICTIM].answer(envelope).header))
        return envelope

    one.tamper = tamper
    one.run().run()

    assert [reply.kind for reply in replies] == ["refusal"]
    assert one.hospitals[VICTIM].refused == ["survivors"]


def test_shares_of_another_list_are_refused_after_the_first(one: Federation) -> None:
    """Both shares of one site: the second request is refused, whatever list it brings."""
    one.run().run()
    asked = next(a for s, a, _ in one.seen if (s, a.kind, a.round) == (VICTIM, "unmask", 2))
    signed = answers(one, "sign", 2)
    three = [Signed.parse(signed[SiteId(s)].blobs["payload"]) for s in ("s1", "s2", "s3")]
    base = Envelope(header=asked.canonical, blobs={"study": one.run().signed_study})
    envelope = again(base, Opening(signatures=tuple(one.signature for one in three)))

    refusal = Reply.parse(one.hospitals[VICTIM].answer(envelope).header)

    assert (refusal.kind, refusal.code) == ("refusal", "protocol")
    given = Opened.parse(answers(one, "unmask", 2)[VICTIM].blobs["payload"]).unmasking
    assert not set(given.own_masks) & set(given.mask_keys)


def test_an_old_round_is_not_opened_again_also_after_a_restart(one: Federation) -> None:
    one.run().run()
    victim, study = one.hospitals[VICTIM], one.run().signed_study
    victim.restart()
    keys = Keys(keys={site: h.key.public_hex for site, h in one.hospitals.items()})
    first = next(a for s, a, _ in one.seen if (s, a.kind) == (VICTIM, "advertise"))
    base = Envelope(header=first.canonical, blobs={"study": study})

    reply = Reply.parse(victim.answer(again(base, keys, attempt=99)).header)

    assert reply.kind == "refusal"
    assert victim.refused == ["answered-before"]


def test_a_vector_without_a_set_up_is_refused_before_anything_is_charged(one: Federation) -> None:
    victim, study = one.hospitals[VICTIM], one.study
    asked = Instruction(
        kind="train",
        study=study.digest,
        round=1,
        attempt=0,
        model_sha256=sha256_hex(b"model"),
        cohort=tuple(one.hospitals),
        roster_sha256=study.roster_sha256,
    )

    with pytest.raises(ProtocolError, match="set up here"):
        victim.service.begin(asked.canonical, one.run().signed_study)
    assert victim.service.ledger.accounts() == ()


def test_shares_that_do_not_open_end_the_round_for_the_site_and_nothing_leaves(
    one: Federation,
) -> None:
    def change(envelope: Envelope) -> Envelope:
        boxes = dict(Boxes.parse(envelope.blobs["boxes"]).boxes)
        boxes["s2"], boxes["s3"] = boxes["s3"], boxes["s2"]
        return Envelope(
            header=envelope.header,
            blobs={**envelope.blobs, "boxes": Boxes(boxes=boxes).canonical},
        )

    assert attack(one, "train", 1, change)[0] == "envelope"
    answer = answers(one, "train", 1)[VICTIM]
    assert Reply.parse(answer.header).kind == "refusal"
    assert answer.blobs.get("payload", b"") == b""
    assert len(one.actions("round.committed")) == 2


def test_what_leaves_is_never_what_the_worker_handed_over(one: Federation) -> None:
    """Not its bytes, not its residues: the guard's masks are on everything (one hidden number
    agrees by chance with probability 2^-32).
    """
    handed: list[bytes] = []
    service = one.hospitals[VICTIM].service
    seal = service.seal

    def listening(receipt: str, payload: bytes, boxes: bytes = b"") -> Envelope:
        handed.append(payload)
        return seal(receipt, payload, boxes)

    object.__setattr__(service, "seal", listening)
    one.run().run()

    sent = answers(one, "train", 1)[VICTIM].blobs["payload"]
    plain = np.frombuffer(handed[0], dtype="<i8").astype(np.uint32)
    masked = np.frombuffer(sent, dtype="<u4")
    assert masked.shape == plain.shape
    assert not (masked == plain).any()


def test_a_worker_cannot_have_its_own_bytes_sealed(one: Federation) -> None:
    """Whatever it hands over is taken for whole numbers of the study's size, or refused."""
    service = one.hospitals[VICTIM].service
    errors: list[str] = []
    seal = service.seal

    def hijacked(receipt: str, payload: bytes, boxes: bytes = b"") -> Envelope:
        for wrong in (payload[:-8], payload + b"12345678", b"{}"):
            with pytest.raises(ProtocolError) as caught:
                seal(receipt, wrong, boxes)
            errors.append(str(caught.value))
        return seal(receipt, payload, boxes)

    object.__setattr__(service, "seal", hijacked)
    one.run().run()

    assert len(errors) == 6
    assert all("whole numbers" in error for error in errors)
