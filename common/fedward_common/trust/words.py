"""A digest as words that two people can read to each other over the telephone.

One byte is one word of a fixed list of 256. The list is part of the format: both ends must show the
same words for the same digest, so no word may ever be changed, added or moved.
"""

import re
from typing import Final

from fedward_common.errors import ConfigError
from fedward_common.ids import DIGEST

_LIST: Final = """
abacus acorn alpaca amber anchor antler apple apron arrow aspen atlas attic autumn badge bagel
bamboo banjo barley basket beacon beaver bicycle birch biscuit blanket blossom bonfire bonnet
bottle bramble breeze bridge bronze bucket buffalo button cabin cactus camera candle canoe
canvas carbon carpet carrot castle cedar cello chalk cherry chimney cinema circus citrus clover
cobalt cobweb coffee comet compass copper coral cotton crayon cricket crystal curtain cushion
daffodil daisy dancer desert diamond dolphin domino donkey dragon drawer drummer eagle easel
echo eclipse elbow emerald engine falcon feather fiddle finger flannel flint flute forest fossil
fountain galaxy garden garlic gazelle ginger giraffe glacier goblet gondola granite grape guitar
hammock harvest hazel helmet hermit hickory honey horizon iceberg igloo indigo insect island
ivory jacket jaguar jasmine jelly jigsaw jungle juniper kayak kettle kitten koala ladder lagoon
lantern lemon leopard lettuce lilac lobster magnet mango maple marble meadow melon meteor mirror
monsoon mosaic muffin museum mustard napkin nectar needle nickel nutmeg oasis ocean octopus
olive onion opera orange orchid otter oxygen oyster paddle palace panda panther papaya parsley
peanut pebble pelican pencil pepper piano pigeon pillow pirate planet pocket poppy potato
prairie pretzel pumpkin puzzle quartz quilt quiver rabbit radish raven rhubarb ribbon robin
rocket saffron salmon sandal satin saturn scarf shadow shovel silver sleigh sparrow spider
spinach sponge squash statue summit sunset tailor teapot temple thimble thunder tiger timber
tomato topaz trumpet tulip tunnel turnip turtle unicorn utopia valley vanilla velvet violin
volcano vortex voyage waffle wagon walnut walrus whistle window wizard wombat wreath zebra
zenith zinc
"""
WORDS: Final = tuple(_LIST.split())
"""256 words of four to eight letters, in order; their first four letters tell them apart."""

COUNT: Final = 8
"""Eight words are 64 bits: whoever wants another key with the same words must make 2**64 keys."""


def words(digest: str, count: int = COUNT) -> str:
    """The first `count` bytes of a SHA-256 (hexadecimal) as words, separated by hyphens.

    Raises:
        ConfigError: `digest` is not 64 lower-case hexadecimal digits, or has fewer than `count`
            bytes.
    """
    if not re.fullmatch(DIGEST, digest):
        raise ConfigError("digest: expected 64 lower-case hexadecimal digits, found something else")
    data = bytes.fromhex(digest)
    if not 1 <= count <= len(data):
        raise ConfigError(f"words: expected 1 to {len(data)} of them, found {count}")
    return "-".join(WORDS[byte] for byte in data[:count])
