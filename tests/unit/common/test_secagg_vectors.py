"""Secure aggregation against tests/vectors/secagg.json: RFCs where there are any, else our own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from fedward_common.canonical import sha256_hex
from fedward_common.secagg.fixedpoint import Ring
from fedward_common.secagg.masks import BLOCK_BYTES, Mask, add_masks, agree, derive
from fedward_common.secagg.refusals import SecAggRefused
from fedward_common.secagg.shares import split
from fedward_common.trust.signing import SigningKey
from tests.support.secagg_round import Round

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "vectors" / "secagg.json").read_text()
)


def little(values: np.ndarray) -> str:
    return values.astype("<u4").tobytes().hex()


def test_key_agreement_is_x25519() -> None:
    given = VECTORS["agree"]

    secret = agree(bytes.fromhex(given["private"]), bytes.fromhex(given["public"]))

    assert secret.hex() == given["secret"]


@pytest.mark.parametrize("name", ["derive_rfc", "derive"])
def test_derivation_is_hkdf_sha256(name: str) -> None:
    given = VECTORS[name]

    assert derive(bytes.fromhex(given["secret"]), given["context"].encode()).hex() == given["key"]


def test_a_mask_is_the_aes_ctr_keystream() -> None:
    given = VECTORS["mask"]
    residues = np.zeros(4, dtype=np.uint32)

    add_masks(residues, [(bytes.fromhex(given["key"]), 1)])

    assert little(residues) == given["residues_le"]


def test_the_keystream_is_plain_counter_mode_over_block_borders() -> None:
    """Another implementation of the same keystream: CTR, counter blocks from 2 on."""
    key, count = bytes(range(32)), BLOCK_BYTES // 4 + 5
    residues = np.zeros(count, np.uint32)
    plain = Cipher(AES256(key), CTR(bytes(15) + b"\x02")).encryptor()

    add_masks(residues, [(key, 1)])

    assert residues.tobytes() == plain.update(bytes(4 * count))


@pytest.mark.parametrize("extra", [-4, 0, 4, 1000])
def test_blocks_join_without_a_seam_and_minus_undoes_plus(extra: int) -> None:
    count = (BLOCK_BYTES + extra) // 4
    key = bytes(range(32))
    whole, shorter = np.zeros(count, np.uint32), np.zeros(8, np.uint32)

    add_masks(whole, [(key, 1)])
    add_masks(shorter, [(key, 1)])
    second = whole[BLOCK_BYTES // 4 :].copy()
    start = whole[:8].copy()
    add_masks(whole, [(key, -1)])

    assert start.tolist() == shorter.tolist()
    assert not whole.any()
    assert not len(second) or second[0] != start[0]


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_many_masks_at_once_are_each_mask_after_the_other(
    dtype: type[np.uint32] | type[np.uint64],
) -> None:
    masks: list[Mask] = [(bytes([number]) * 32, 1 if number % 2 else -1) for number in range(5)]
    together: Ring = np.arange(BLOCK_BYTES // 4 + 3, dtype=dtype)
    one_by_one, untouched = together.copy(), together.copy()

    add_masks(together, masks)
    for mask in masks:
        add_masks(one_by_one, [mask])
    add_masks(untouched, [])

    assert (together == one_by_one).all()
    assert (untouched == np.arange(len(untouched))).all()
    assert (together != untouched).any()


def test_shares_of_a_known_polynomial() -> None:
    given = VECTORS["shares"]
    byte = bytes.fromhex(given["coefficient_bytes"])

    shares = split(
        bytes.fromhex(given["secret"]),
        holders=3,
        threshold=given["threshold"],
        random_bytes=lambda count: byte[:count],
    )

    assert {str(holder): share.hex() for holder, share in shares.items()} == given["shares"]


def test_a_round_with_known_keys_keeps_its_format() -> None:
    given = VECTORS["round"]
    keys = [
        SigningKey(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(key)))
        for key in given["site_keys"]
    ]
    one = Round(sites=3, keys=keys, size=4, seed=0)

    one.advertised()
    one.shared()
    sent = {
        site: party.mask(
            one.coordinator.boxes_for(site), np.arange(4, dtype=np.uint32) * int(site[1])
        )
        for site, party in one.parties.items()
    }

    assert one.session.roster_sha256 == given["roster_sha256"]
    adverts = [sha256_hex(advert.canonical) for advert in one.coordinator.adverts()]
    assert adverts == given["adverts_sha256"]
    assert {site: little(vector) for site, vector in sent.items()} == given["masked_le"]


def test_a_key_of_small_order_is_refused() -> None:
    with pytest.raises(SecAggRefused, match="X25519"):
        agree(bytes(range(32)), bytes(32))
