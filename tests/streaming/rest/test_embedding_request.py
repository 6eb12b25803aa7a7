"""What `POST /v1/embeddings` takes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import Unsupported
from streaming.rest.embeddings import EmbeddingRequest


@given(
    st.lists(st.text(min_size=1) | st.integers(0, 9) | st.lists(st.integers(0, 9), min_size=1), min_size=1, max_size=5)
)
def test_texts_are_taken_whole_or_the_first_that_is_none_is_named(sent: list[Any]) -> None:
    body = EmbeddingRequest.model_validate({"input": sent})
    wrong = [at for at, each in enumerate(sent) if not isinstance(each, str)]
    if not wrong:
        assert body.texts() == tuple(sent)
        return
    with pytest.raises(Unsupported, match="Token ids") as refused:
        body.texts()
    assert refused.value.field == f"input[{wrong[0]}]"
