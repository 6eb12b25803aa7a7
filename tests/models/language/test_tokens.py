"""Tokens are counted with the card's own tokenizer where it lies here, and estimated where it does not."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from models.content import AudioPart, BlobRef, FilePart, ImagePart, Part, TextPart, VideoPart
from models.language.tokens import PIECE_CHARACTERS, CountedTokens, EstimatedTokens, counter


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a byte-level tokenizer that knows "he" and "ll", and a mark that stands before each text."""
    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = {letter: n for n, letter in enumerate([*alphabet, "he", "ll", "<s>"])}
    tokenizer = Tokenizer(BPE(vocabulary, [("h", "e"), ("l", "l")]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens(["<s>"])
    folder = tmp_path_factory.mktemp("weights")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("hello", 3), ("help", 3), ("é", 2), ("🎻", 4), ("he he", 3)])
def test_a_card_whose_tokenizer_is_here_is_counted_with_it(folder: Path, text: str, tokens: int) -> None:
    counted = counter(folder)
    assert isinstance(counted, CountedTokens)
    assert [counted.count(text) for _ in range(2)] == [tokens, tokens]


def test_a_long_text_is_counted_as_a_short_one_is_and_not_remembered(folder: Path) -> None:
    counted = CountedTokens(folder)
    assert counted.count("hello" * PIECE_CHARACTERS) == 3 * PIECE_CHARACTERS
    assert counted._remembered.cache_info().currsize == 0
    counted.count("hello")
    counted.count("hello")
    assert counted._remembered.cache_info().hits == 1


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_a_byte_is_at_most_one_token(folder: Path, text: str) -> None:
    assert CountedTokens(folder).count(text) <= len(text.encode())


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("a", 1), ("abc", 1), ("abcd", 2), ("éé", 2), ("🎻", 2)])
def test_an_estimate_is_a_third_of_the_bytes_and_never_less(text: str, tokens: int) -> None:
    assert EstimatedTokens().count(text) == tokens


def test_what_has_no_tokenizer_here_is_estimated(tmp_path: Path) -> None:
    assert isinstance(counter(None), EstimatedTokens)
    assert isinstance(counter(tmp_path), EstimatedTokens)


_BLOB = BlobRef(sha256="0" * 64, media_type="image/png", size_bytes=1)


@pytest.mark.parametrize(
    ("part", "tokens"),
    [
        (TextPart(text="abcdef"), 2),
        (ImagePart(blob=_BLOB, width_px=512, height_px=512), 85 + 170),
        (ImagePart(blob=_BLOB, width_px=4_032, height_px=3_024), 85 + 8 * 6 * 170),
        (AudioPart(blob=_BLOB, rate_hz=16_000, samples=48_000), 30),
        (VideoPart(blob=_BLOB, width_px=512, height_px=512, duration_ms=2_500), 3 * 255),
        (FilePart(blob=_BLOB, name="a.bin"), 0),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_pictures_and_sound_count_too(part: Part, tokens: int) -> None:
    assert EstimatedTokens().count_part(part) == tokens
