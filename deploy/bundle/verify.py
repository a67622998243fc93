"""Verifies a Fedward bundle with nothing but Python's standard library.

`build` copies this file into `install.sh`, which runs it before anything else of the bundle. It
proves, in this order:

1. `SHA256SUMS.sig` is the Ed25519 signature of `SHA256SUMS` under the key that the caller names
   (RFC 8032, section 5.1.7; nothing secret is computed here, so time may vary);
2. every name in `SHA256SUMS` is a plain relative path, and stands there once;
3. the folder holds exactly these files and the two above, and no link or device;
4. every file has the SHA-256 that stands there.

The key must have come another way than the bundle. `install.sh` is one of the files listed: who
runs it has trusted it already, or has checked the signature by hand (README.md).
"""

import hashlib
import os
import re
import stat
import sys
from pathlib import Path

SUMS = "SHA256SUMS"
SIGNATURE = "SHA256SUMS.sig"
DOMAIN = b"fedward/bundle/v1|"
LINE = re.compile(
    r"([0-9a-f]{64})  ([A-Za-z0-9_+-][A-Za-z0-9._+-]*(?:/[A-Za-z0-9_+-][A-Za-z0-9._+-]*)*)"
)
CHUNK = 1 << 20

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ROOT = pow(2, (P - 1) // 4, P)

Point = tuple[int, int, int, int]


class Refused(Exception):
    """The bundle is not what its publisher signed."""


def _add(p: Point, q: Point) -> Point:
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % P, (p[1] + p[0]) * (q[1] + q[0]) % P
    c, d = 2 * p[3] * q[3] * D % P, 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return (e * f % P, g * h % P, f * g % P, e * h % P)


def _times(scalar: int, point: Point) -> Point:
    total: Point = (0, 1, 1, 0)
    while scalar:
        if scalar & 1:
            total = _add(total, point)
        point = _add(point, point)
        scalar >>= 1
    return total


def _same(p: Point, q: Point) -> bool:
    return (p[0] * q[2] - q[0] * p[2]) % P == 0 and (p[1] * q[2] - q[1] * p[2]) % P == 0


def _point(data: bytes) -> Point:
    """The point that 32 bytes encode (RFC 8032, 5.1.3); another encoding is refused."""
    y = int.from_bytes(data, "little")
    sign, y = y >> 255, y & (1 << 255) - 1
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * ROOT % P
    if y >= P or (x * x - square) % P or (x == 0 and sign):
        raise Refused("expected an Ed25519 key and signature, found bytes that are none")
    if x & 1 != sign:
        x = P - x
    return (x, y, 1, x * y % P)


BASE = _point((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))


def verify_signature(public_key: bytes, signature: bytes, data: bytes) -> None:
    """Returns only when `signature` is the Ed25519 signature of `data` by `public_key`.

    Raises:
        Refused: it is not.
    """
    if len(public_key) != 32 or len(signature) != 64:
        raise Refused("expected an Ed25519 key of 32 bytes and a signature of 64, found others")
    key, commitment = _point(public_key), _point(signature[:32])
    if _same(_times(8, key), (0, 1, 1, 0)):
        raise Refused("expected an Ed25519 key, found one that accepts any signature")
    scalar = int.from_bytes(signature[32:], "little")
    digest = hashlib.sha512(signature[:32] + public_key + data).digest()
    challenge = int.from_bytes(digest, "little") % L
    if scalar >= L or not _same(_times(scalar, BASE), _add(commitment, _times(challenge, key))):
        raise Refused(
            f"{SIGNATURE}: expected the signature of {SUMS} by the key {public_key.hex()[:16]}..., "
            "found another. The bundle was changed, or another key signed it"
        )


def read_sums(text: bytes) -> dict[str, str]:
    """Path -> SHA-256 of every file that the bundle must hold.

    Raises:
        Refused: a line is malformed, a path is not plain and relative, or a name stands twice.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(text.decode("ascii", "replace").splitlines(), start=1):
        match = LINE.fullmatch(line)
        if match is None or match[2] in found or match[2] in (SUMS, SIGNATURE):
            raise Refused(f"{SUMS} line {number}: expected a digest and a plain path, once")
        found[match[2]] = match[1]
    return found


def list_files(folder: Path) -> set[str]:
    """The paths of all files below `folder`.

    Raises:
        Refused: there is a link, a device, a socket or a pipe.
    """
    found: set[str] = set()
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(root, name)
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise Refused(f"{path.relative_to(folder)}: expected a plain file or folder")
            if stat.S_ISREG(mode):
                found.add(path.relative_to(folder).as_posix())
    return found


def verify_bundle(folder: Path, public_key: str) -> None:
    """Returns only when `folder` is, byte for byte, what the holder of `public_key` signed.

    Raises:
        Refused: it is not; the text says what was expected, what was found and what to do.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", public_key):
        raise Refused("--key: expected the publisher's key as 64 lower-case hexadecimal digits")
    for name in (SUMS, SIGNATURE):
        if not stat.S_ISREG((folder / name).lstat().st_mode):
            raise Refused(f"{name}: expected a plain file")
    sums, signature = ((folder / name).read_bytes() for name in (SUMS, SIGNATURE))
    verify_signature(bytes.fromhex(public_key), signature, DOMAIN + sums)  # 1
    wanted = read_sums(sums)  # 2
    found = list_files(folder) - {SUMS, SIGNATURE}  # 3
    for name in sorted(found ^ set(wanted)):
        more = "one that is not listed" if name in found else "it missing"
        raise Refused(f"{name}: expected the files of {SUMS} and no others, found {more}")
    for name, digest in wanted.items():  # 4
        state = hashlib.sha256()
        with (folder / name).open("rb") as file:
            while block := file.read(CHUNK):
                state.update(block)
        if state.hexdigest() != digest:
            raise Refused(f"{name}: expected SHA-256 {digest[:16]}..., found another file")


def main(arguments: list[str]) -> int:
    """`verify.py FOLDER PUBLIC_KEY`: 0 when the bundle is the publisher's, 1 when it is not."""
    if len(arguments) != 2:
        print("usage: verify.py FOLDER PUBLIC_KEY", file=sys.stderr)
        return 2
    try:
        verify_bundle(Path(arguments[0]), arguments[1])
    except (Refused, OSError) as error:
        print(f"bundle refused: {error}. Nothing was installed", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
