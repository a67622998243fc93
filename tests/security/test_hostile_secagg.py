"""A malicious coordinator in secure aggregation: each attack is refused with its named reason."""

import numpy as np
import pytest

from fedward_common.ids import SiteId
from fedward_common.secagg.messages import Advert, Envelopes, SurvivorSignature
from fedward_common.secagg.participant import Participant, Phase
from fedward_common.secagg.refusals import Reason, SecAggRefused
from fedward_common.secagg.thresholds import Thresholds
from fedward_common.trust.signing import SigningKey
from tests.support.secagg_round import Round, total


def refused(reason: Reason) -> "pytest.RaisesExc[SecAggRefused]":
    return pytest.raises(SecAggRefused, check=lambda error: error.reason is reason)


def changed(advert: Advert, **values: object) -> Advert:
    return advert.model_copy(update=values)


def after_adverts(sites: int = 4) -> tuple[Round, list[Advert], Participant]:
    one = Round(sites=sites)
    one.advertised()
    return one, list(one.coordinator.adverts()), one.parties["s1"]  # type: ignore[index]


def after_masks(sites: int = 6, *, without: tuple[str, ...] = ()) -> Round:
    one = Round(sites=sites)
    one.advertised()
    one.shared()
    one.masked(one.vectors(), without=without)
    return one


def test_a_swapped_key_of_another_site_is_refused() -> None:
    _, adverts, victim = after_adverts()
    adverts[2] = changed(adverts[2], mask_key=adverts[3].share_key)

    with refused(Reason.SIGNATURE):
        victim.share(adverts)
    assert victim.phase is Phase.REFUSED


def test_a_key_of_the_coordinators_own_under_another_signature_is_refused() -> None:
    one, adverts, victim = after_adverts()
    unsigned = changed(adverts[1], mask_key="ab" * 32, signature="")
    forged = SigningKey.generate().sign(unsigned.signed_bytes(one.session)).hex()

    with refused(Reason.SIGNATURE):
        victim.share([adverts[0], changed(unsigned, signature=forged), *adverts[2:]])


def test_an_advert_of_an_old_round_is_refused() -> None:
    one, adverts, victim = after_adverts()
    earlier = Round(sites=4, number=2, keys=one.keys)
    earlier.advertised()
    replayed = list(earlier.coordinator.adverts())

    with refused(Reason.OTHER_ROUND):
        victim.share([adverts[0], replayed[1], *adverts[2:]])


def test_an_old_advert_renumbered_for_this_round_is_refused() -> None:
    one, adverts, victim = after_adverts()
    earlier = Round(sites=4, number=2, keys=one.keys)
    earlier.advertised()
    replayed = changed(earlier.coordinator.adverts()[1], round=1)

    with refused(Reason.SIGNATURE):
        victim.share([adverts[0], replayed, *adverts[2:]])


def test_this_sites_own_advert_changed_or_left_out_is_refused() -> None:
    _, adverts, victim = after_adverts()

    with refused(Reason.OWN_ADVERT_CHANGED):
        victim.share(adverts[1:])


def test_a_site_that_the_study_does_not_name_is_refused() -> None:
    _, adverts, victim = after_adverts()

    with refused(Reason.UNKNOWN_SITE):
        victim.share([*adverts, changed(adverts[1], site="s9")])


def test_too_few_sites_are_refused_by_the_site_itself() -> None:
    _, adverts, victim = after_adverts(sites=6)

    with refused(Reason.TOO_FEW_SITES):
        victim.share(adverts[:4])


def test_shares_of_another_site_or_round_do_not_open() -> None:
    one, adverts, victim = after_adverts()
    sent = {party.site: party.share(adverts) for party in one.parties.values()}
    boxes = {site: sent[site].boxes["s1"] for site in sent if site != "s1"}

    with refused(Reason.ENVELOPE):
        victim.mask({**boxes, "s2": boxes[SiteId("s3")]}, np.zeros(10, np.uint32))


def test_a_second_vector_of_the_same_site_is_never_sent() -> None:
    one = after_masks()

    with refused(Reason.PHASE):
        one.parties["s1"].mask({}, np.zeros(10, np.uint32))  # type: ignore[index]


@pytest.mark.parametrize(
    ("survivors", "reason"),
    [
        (("s1", "s2", "s3", "s4"), Reason.TOO_FEW_SURVIVORS),
        (("s2", "s3", "s4", "s5", "s6"), Reason.SURVIVORS),
        (("s1", "s2", "s3", "s4", "s5", "s5"), Reason.SURVIVORS),
        (("s1", "s2", "s3", "s4", "s5", "s9"), Reason.SURVIVORS),
    ],
)
def test_a_wrong_survivor_list_is_refused(survivors: tuple[str, ...], reason: Reason) -> None:
    one = after_masks()

    with refused(reason):
        one.parties["s1"].sign_survivors(survivors)  # type: ignore[index]


def test_sites_that_answered_another_instruction_are_in_no_sum() -> None:
    """One site gets a model of its own, so that its part could be told from the rest (Pasquini et
    al. 2022). Its masks do not cancel with those of the others, and its signature is of another
    text: nothing is opened.
    """
    one = Round(sites=6)
    one.advertised()
    one.shared()
    for site, party in one.parties.items():
        boxes = one.coordinator.boxes_for(site)
        bound = "other" if site == "s1" else "same"
        one.coordinator.take_masked(site, party.mask(boxes, np.zeros(10, np.uint32), bound=bound))
    one.coordinator.bound = "same"
    survivors = one.coordinator.close()
    signed = {s: one.parties[SiteId(s)].sign_survivors(survivors) for s in survivors}

    with refused(Reason.SIGNATURE):
        one.coordinator.take_signature(signed["s1"])
    for site in survivors[1:]:
        one.coordinator.take_signature(signed[site])
    with refused(Reason.SIGNATURE):
        one.parties["s1"].unmask([signed[s] for s in survivors[1:]])  # type: ignore[index]
    for site in survivors[1:]:
        party = one.parties[SiteId(site)]
        one.coordinator.take_unmasking(party.unmask(one.coordinator.signatures()))
    assert (one.coordinator.sum() != 0).all()


def test_a_split_view_cannot_gather_t_signatures_on_each_of_two_lists() -> None:
    """Half the sites see one list, half another: nobody unmasks."""
    one = after_masks()
    first, second = ("s1", "s2", "s3", "s4", "s5"), ("s2", "s3", "s4", "s5", "s6")
    signed = [one.parties[s].sign_survivors(first) for s in ("s1", "s2", "s3")]  # type: ignore[index]
    signed += [one.parties[s].sign_survivors(second) for s in ("s4", "s5", "s6")]  # type: ignore[index]

    with refused(Reason.SURVIVORS):
        one.parties["s1"].unmask(signed)  # type: ignore[index]
    with refused(Reason.TOO_FEW_SIGNATURES):
        one.parties["s2"].unmask(signed[:3])  # type: ignore[index]


def test_a_forged_signature_of_the_list_is_refused() -> None:
    one = after_masks()
    survivors = one.coordinator.close()
    signed = [one.parties[s].sign_survivors(survivors) for s in survivors]  # type: ignore[index]
    forged = SurvivorSignature(site="s2", survivors=survivors, signature="00" * 64)

    with refused(Reason.SIGNATURE):
        one.parties["s1"].unmask([signed[0], forged, *signed[2:]])  # type: ignore[index]


def test_a_second_unmasking_is_refused_also_by_a_site_that_forgot() -> None:
    one = after_masks()
    one.opened()
    restarted = Round(sites=6, keys=one.keys, claimed=one.claimed)
    restarted.advertised()
    restarted.shared()
    restarted.masked(restarted.vectors())

    with refused(Reason.ANSWERED_BEFORE):
        restarted.opened()


def test_no_site_gives_both_shares_of_another() -> None:
    one = after_masks(without=("s6",))
    survivors = one.coordinator.close()
    signed = [one.parties[s].sign_survivors(survivors) for s in survivors]  # type: ignore[index]

    given = one.parties["s1"].unmask(signed)  # type: ignore[index]

    assert set(given.own_masks) == set(survivors)
    assert set(given.mask_keys) == {"s6"}
    assert not set(given.own_masks) & set(given.mask_keys)


def test_a_late_vector_of_a_site_that_was_declared_lost_is_not_added() -> None:
    one = after_masks(without=("s6",))
    one.coordinator.close()

    with refused(Reason.PHASE):
        one.coordinator.take_masked("s6", np.zeros(10, np.uint32))


def test_a_masked_vector_tells_nothing_by_its_bytes() -> None:
    """The coordinator sees residues that are uniform whatever was in the vector.

    Chi-square over the top four bits of 40,000 residues, false alarm below 1e-9.
    """
    one = Round(sites=3, size=40_000)
    one.advertised()
    one.shared()
    vectors = {site: np.zeros(40_000, np.uint32) for site in one.parties}
    sent = one.parties["s1"].mask(one.coordinator.boxes_for("s1"), vectors["s1"].copy())  # type: ignore[index]

    counts = np.bincount((sent >> np.uint32(28)).astype(np.int64), minlength=16)

    assert (np.square(counts - 2500) / 2500).sum() < 75


def test_a_site_that_lies_about_its_shares_is_noticed_and_no_sum_is_released() -> None:
    one = after_masks(sites=3)
    survivors = one.coordinator.close()
    for site in survivors:
        one.coordinator.take_signature(one.parties[site].sign_survivors(survivors))  # type: ignore[index]
    for site in survivors:
        sent = one.parties[site].unmask(one.coordinator.signatures())  # type: ignore[index]
        if site == "s3":
            sent = sent.model_copy(update={"own_masks": dict.fromkeys(sent.own_masks, "00" * 33)})
        one.coordinator.take_unmasking(sent)

    with refused(Reason.SHARES):
        one.coordinator.sum()


def test_envelopes_for_the_wrong_sites_are_refused_by_the_coordinator() -> None:
    one = Round(sites=3)
    one.advertised()

    with refused(Reason.SHARES):
        one.coordinator.take_envelopes(Envelopes(site="s1", boxes={"s2": "00"}))


def test_two_sites_are_no_secure_sum() -> None:
    with refused(Reason.TOO_FEW_SITES):
        Thresholds.of(2)


def test_semi_honest_mode_needs_two_exchanges_and_its_own_word() -> None:
    one = Round(sites=3, mode="semi-honest")
    vectors = one.vectors()
    one.advertised()
    one.shared()
    one.masked(vectors)

    np.testing.assert_array_equal(one.opened(), total(vectors, vectors))


def re_signed(one: Round, advert: Advert, **values: object) -> Advert:
    """The advert with other keys under the right signature: its own site sent it."""
    unsigned = changed(advert, signature="", **values)
    key = one.keys[one.session.number(advert.site) - 1]
    return changed(unsigned, signature=key.sign(unsigned.signed_bytes(one.session)).hex())


UNFIT = {
    "one key twice": (lambda advert, _: {"share_key": advert.mask_key}, Reason.REPEATED_KEY),
    "another's key": (lambda _, other: {"mask_key": other.share_key}, Reason.REPEATED_KEY),
    "a mask key of small order": (lambda *_: {"mask_key": "00" * 32}, Reason.WRONG_KEY),
    "a share key of small order": (lambda *_: {"share_key": "01" + "00" * 31}, Reason.WRONG_KEY),
}


@pytest.mark.parametrize("name", UNFIT)
def test_an_advert_that_nobody_can_use_loses_its_own_site_only(name: str) -> None:
    spoilt, reason = UNFIT[name]
    one = Round(sites=4)
    adverts = [party.advertise() for party in one.parties.values()]
    for advert in adverts[:3]:
        one.coordinator.take_advert(advert)

    with refused(reason) as caught:
        unfit = re_signed(one, adverts[3], **spoilt(adverts[3], adverts[0]))
        one.coordinator.take_advert(unfit)

    assert caught.value.site == "s4"
    vectors = one.vectors()
    one.shared()
    one.masked(vectors)
    np.testing.assert_array_equal(one.opened(), total(vectors, ("s1", "s2", "s3")))


@pytest.mark.parametrize("name", UNFIT)
def test_a_site_refuses_such_an_advert_and_says_whose_it_is(name: str) -> None:
    spoilt, reason = UNFIT[name]
    one, adverts, victim = after_adverts()
    adverts[3] = re_signed(one, adverts[3], **spoilt(adverts[3], adverts[1]))

    with refused(reason) as caught:
        victim.share(adverts)

    assert (caught.value.site, victim.phase) == ("s4", Phase.REFUSED)


def test_a_mask_that_fails_ends_the_round_for_the_site() -> None:
    """It signs no list after that: there is no vector of it that a list could name."""
    one = Round(sites=4)
    one.advertised()
    one.shared()
    victim = one.parties["s1"]  # type: ignore[index]
    victim._adverts["s2"] = changed(victim._adverts["s2"], mask_key="00" * 32)

    with refused(Reason.WRONG_KEY):
        victim.mask(one.coordinator.boxes_for("s1"), np.zeros(10, np.uint32))

    assert victim.phase is Phase.REFUSED
    with refused(Reason.PHASE):
        victim.sign_survivors(("s1", "s2", "s3", "s4"))


def test_envelopes_are_tried_before_the_mask_and_nothing_of_them_is_kept() -> None:
    one = Round(sites=4)
    one.advertised()
    one.shared()
    victim, boxes = one.parties["s1"], one.coordinator.boxes_for("s1")  # type: ignore[index]

    victim.require_boxes(boxes)
    victim.require_boxes({s: box for s, box in boxes.items() if s != "s4"})

    assert victim.phase is Phase.SHARED
    with refused(Reason.ENVELOPE) as caught:
        victim.require_boxes(boxes | {"s3": boxes["s3"][:-2] + "00"})
    assert caught.value.site == "s3"
    assert victim.phase is Phase.REFUSED


@pytest.mark.parametrize("wrong", ["00" * 33, "ff" * 33], ids=["another share", "no share"])
@pytest.mark.parametrize("lost", [(), ("s5",)], ids=["nobody lost", "one lost"])
def test_one_site_that_lies_about_its_shares_is_named_and_the_sum_opens(
    wrong: str, lost: tuple[str, ...]
) -> None:
    one = Round(sites=7)
    vectors = one.vectors()
    one.advertised()
    one.shared()
    one.masked(vectors, without=lost)
    survivors = one.coordinator.close()
    for site in survivors:
        one.coordinator.take_signature(one.parties[site].sign_survivors(survivors))  # type: ignore[index]
    for site in survivors:
        sent = one.parties[site].unmask(one.coordinator.signatures())  # type: ignore[index]
        if site == "s1":
            spoilt = {k: dict.fromkeys(getattr(sent, k), wrong) for k in ("own_masks", "mask_keys")}
            sent = sent.model_copy(update=spoilt)
        one.coordinator.take_unmasking(sent)

    np.testing.assert_array_equal(one.coordinator.sum(), total(vectors, survivors))
    assert one.coordinator.liars == ("s1",)
