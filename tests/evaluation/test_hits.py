"""Hits survive packing, and a text that packing cannot have written is refused."""

import base64

import numpy as np
import pytest

from dhel_kcl.evaluation.hits import pack_hits, unpack_hits


@pytest.mark.parametrize("images", [1, 7, 8, 9, 24, 1000])
def test_what_was_packed_is_unpacked(images: int) -> None:
    hits = np.random.default_rng(images).random(images) < 0.7
    text = pack_hits(hits)
    unpacked = unpack_hits(text, images)
    assert unpacked.dtype == np.bool_
    np.testing.assert_array_equal(unpacked, hits)
    assert len(text) == 4 * -(-images // 24)


def test_the_first_image_is_the_highest_bit_of_the_first_byte() -> None:
    assert pack_hits(np.array([True] + 8 * [False])) == base64.b64encode(bytes([0b1000_0000, 0])).decode()
    np.testing.assert_array_equal(
        unpack_hits(base64.b64encode(bytes([0b0110_0000, 0b1000_0000])).decode(), 9),
        [False, True, True, False, False, False, False, False, True],
    )


@pytest.mark.parametrize("hits", [np.ones(3), np.ones((2, 3), bool), np.ones(0, bool), np.array(True)])
def test_only_a_list_of_booleans_is_packed(hits: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"hits must be Booleans of shape \(n,\) with n >= 1"):
        pack_hits(hits)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("/w", "not base64"),
        ("/w==\n", "not base64"),
        ("/w=*", "not base64"),
        ("\N{LATIN SMALL LETTER E WITH ACUTE}", "not base64"),
        ("", "of 8 images take 1 bytes, these are 0"),
        ("//8=", "of 8 images take 1 bytes, these are 2"),
        ("/x==", "a bit beyond the last of 8 images"),
    ],
)
def test_another_text_is_refused(text: str, said: str) -> None:
    unpack_hits("/w==", 8)
    with pytest.raises(ValueError, match=said):
        unpack_hits(text, 8)


def test_a_bit_beyond_the_last_image_is_refused() -> None:
    unpack_hits("/w==", 8)
    with pytest.raises(ValueError, match="a bit beyond the last of 7 images"):
        unpack_hits("/w==", 7)
