"""A thousand class names like those of google/vit-base-patch16-224: lists of synonyms, and twice ``crane``."""

from __future__ import annotations

CRANES = (134, 517)
_PLACED = {
    **dict.fromkeys(CRANES, "crane"),
    281: "tabby, tabby cat",
    282: "tiger cat",
    291: "lion, king of beasts, Panthera leo",
    150: "sea lion",
    22: "bald eagle, American eagle, Haliaeetus leucocephalus",
    162: "beagle",
    242: "boxer",
    608: "jean, blue jean, denim",
    622: "lens cap, lens cover",
    638: "maillot",
    639: "maillot, tank suit",
    726: "plane, carpenter's plane, woodworking plane",
    795: "ski",
    836: "sunglass",
    837: "sunglasses, dark glasses, shades",
    842: "swimming trunks, bathing trunks",
    874: "trolleybus, trolley coach, trackless trolley",
    934: "hotdog, hot dog, red hot",
    964: "potpie",
    985: "daisy",
}
_FIRST = (
    *("amber", "banded", "copper", "dusky", "golden", "hooded", "ivory", "lesser", "mottled", "northern"),
    *("pygmy", "ringed", "scarlet", "tufted", "velvet"),
)
_KINDS = (
    *("finch", "warbler", "terrapin", "gecko", "otter", "marten", "spaniel", "hound", "terrier", "thrush", "heron"),
    *("kettle", "lantern", "bucket", "saddle", "trumpet", "wagon", "cabinet", "hammer", "basket", "pullover", "ladle"),
    *("drum", "bench", "bridge", "tower", "barrel", "goblet", "blanket", "compass", "quilt", "anchor", "kayak"),
    *("cheese", "melon", "squash", "mushroom", "biscuit", "pastry", "fungus", "acorn", "orchid", "thistle", "fern"),
    *("mitten", "apron", "bonnet", "sandal", "scarf", "cloak", "loom", "anvil", "bellows", "flute", "harp", "lute"),
    *("tram", "ferry", "sledge", "glider", "canoe", "tractor", "trailer", "carriage", "barge", "yawl", "dory", "skiff"),
)


def imagenet_like_names() -> tuple[str, ...]:
    """The names by id; always the same."""
    made = iter(
        f"{first} {kind}, {kind} of the {first} sort, {first.capitalize()}us {kind}ensis"
        for kind in _KINDS
        for first in _FIRST
    )
    return tuple(_PLACED.get(index) or next(made) for index in range(1_000))
