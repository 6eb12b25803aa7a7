"""Server-sent events are read the same however a stream is cut, and as the format says."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import Internal
from models.language.openai.sse import MAX_EVENT_BYTES, EventReader

_DATA = st.lists(st.text(st.characters(exclude_characters="\r\n", codec="utf-8")), min_size=1, max_size=4)
_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


def _read(*pieces: bytes) -> list[bytes]:
    reader = EventReader()
    return [data for piece in pieces for data in reader.feed(piece)]


@given(st.lists(_DATA, max_size=5), _ENDS, st.lists(st.integers(0, 400)))
def test_however_a_stream_is_cut_the_same_is_read(events, end, cuts):
    stream = b"".join(b"".join(b"data: " + line.encode() + end for line in event) + end for event in events)
    borders = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    pieces = [stream[first:last] for first, last in pairwise(borders)]
    assert _read(*pieces) == ["\n".join(event).encode() for event in events]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b": a comment\n\ndata: a\n\n", [b"a"]),
        (b"event: x\nid: 1\nretry: 2\ndata: a\n\n", [b"a"]),
        (b"event: x\n\n", []),
        (b"data:a\ndata:  b\n\n", [b"a\n b"]),
        (b"data\n\n", [b""]),
        (b"database: a\n\n", []),
        (b"data: a\r\n\r\ndata: b\r\r", [b"a", b"b"]),
        (b"data: cut off", []),
        (b"data: not ended\n", []),
        (b"\n\n\ndata: a\n\n\n", [b"a"]),
    ],
)
def test_only_data_is_kept(stream, events):
    assert _read(stream) == events
    assert _read(*(stream[at : at + 1] for at in range(len(stream)))) == events


def test_an_event_has_a_longest_length():
    piece = b"data: " + b"x" * 1000 + b"\n"
    with pytest.raises(Internal):
        _read(*[piece] * (MAX_EVENT_BYTES // 1000 + 1))
    with pytest.raises(Internal):
        _read(b"x" * (MAX_EVENT_BYTES + 1))
    assert len(_read(*[piece + b"\n"] * (MAX_EVENT_BYTES // 1000 + 1))) == MAX_EVENT_BYTES // 1000 + 1
