"""What is kept of finished rows, against a list that is searched from end to end."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from models.language.decoding.blocks import Extent, Move
from models.language.decoding.prefixes import CHUNK_TOKENS, Prefixes, Scope
from models.owner import Owner

SCOPES = (Scope(owner=Owner("ada")), Scope(owner=Owner("ada"), adapter="terse"), Scope(owner=Owner("bob")))


def _agreement(left: list[int], right: list[int]) -> int:
    return next((at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


@st.composite
def texts(draw: st.DrawFn) -> list[int]:
    """Texts of some chunks that often begin alike, and differ anywhere."""
    runs = draw(
        st.lists(st.tuples(st.integers(0, 1), st.sampled_from((1, 5, CHUNK_TOKENS, CHUNK_TOKENS + 1))), max_size=4)
    )
    return [token for token, count in runs for _ in range(count)]


class Library(RuleBasedStateMachine):
    """`shelf` holds (scope, text, extent), the least recently used first."""

    def __init__(self) -> None:
        super().__init__()
        self.prefixes = Prefixes()
        self.shelf: list[tuple[Scope, list[int], Extent]] = []
        self.made = 0

    def touch(self, extent: Extent) -> tuple[Scope, list[int], Extent]:
        found = next(kept for kept in self.shelf if kept[2] == extent)
        self.shelf.remove(found)
        self.shelf.append(found)
        return found

    @rule(scope=st.sampled_from(SCOPES), text=texts())
    def keep(self, scope: Scope, text: list[int]) -> None:
        extent = Extent(start=self.made, blocks=1 + len(text) // CHUNK_TOKENS)
        self.made += 1
        freed = self.prefixes.keep(scope, text, extent)
        same = [kept for kept in self.shelf if kept[0] == scope]
        if not text or any(kept[1][: len(text)] == text for kept in same):
            assert freed == extent
            self.shelf.sort(key=lambda kept: [entry.extent for entry in self.prefixes].index(kept[2]))
            return
        covered = [kept for kept in same if text[: len(kept[1])] == kept[1]]
        assert [freed] == ([kept[2] for kept in covered] or [None])
        self.shelf = [kept for kept in self.shelf if kept not in covered] + [(scope, text, extent)]

    @rule(scope=st.sampled_from(SCOPES), text=texts())
    def match(self, scope: Scope, text: list[int]) -> None:
        longest = max((_agreement(kept[1], text) for kept in self.shelf if kept[0] == scope), default=0)
        found = self.prefixes.match(scope, text)
        if not longest:
            assert found is None
            return
        assert found is not None
        assert found.tokens == longest
        owner, kept, extent = self.touch(found.kept.extent)
        assert owner == found.kept.scope == scope
        assert _agreement(kept, text) == longest
        assert found.whole is (len(kept) == longest)
        assert extent == found.kept.extent

    @precondition(lambda self: self.shelf)
    @rule()
    def evict(self) -> None:
        oldest = next(iter(self.prefixes), None)
        assert oldest is not None
        assert self.prefixes.take(oldest) == self.shelf.pop(0)[2]

    @precondition(lambda self: self.shelf)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        kept = data.draw(st.sampled_from(list(self.prefixes)))
        extent = self.prefixes.take(kept)
        self.shelf = [entry for entry in self.shelf if entry[2] != extent]

    @invariant()
    def the_same_is_kept_in_the_same_order(self) -> None:
        assert [kept.extent for kept in self.prefixes] == [kept[2] for kept in self.shelf]
        assert len(self.prefixes) == len(self.shelf)
        assert self.prefixes.blocks == sum(kept[2].blocks for kept in self.shelf)

    def teardown(self) -> None:
        while (oldest := next(iter(self.prefixes), None)) is not None:
            self.prefixes.take(oldest)
        assert not self.prefixes._roots  # and so no chunk is left behind
        assert self.prefixes.blocks == 0


TestLibrary = Library.TestCase
TestLibrary.settings = settings(max_examples=60, stateful_step_count=40)


def test_no_tenant_and_no_adapter_is_given_what_another_left():
    prefixes = Prefixes()
    prefixes.keep(SCOPES[0], list(range(100)), Extent(start=0, blocks=4))
    for other in SCOPES[1:]:
        assert prefixes.match(other, list(range(100))) is None


def test_a_prompt_that_leaves_the_kept_text_within_a_chunk_matches_up_to_there():
    prefixes = Prefixes()
    prefixes.keep(SCOPES[0], [*range(100)], Extent(start=0, blocks=4))
    prefixes.keep(SCOPES[0], [*range(50), *range(100, 150)], Extent(start=4, blocks=4))
    found = prefixes.match(SCOPES[0], [*range(50), *range(100, 110), 7])
    assert found is not None
    assert (found.kept.extent.start, found.tokens, found.whole) == (4, 60, False)


def test_what_was_moved_in_the_arena_is_found_where_it_went():
    prefixes = Prefixes()
    prefixes.keep(SCOPES[0], [1, 2, 3], Extent(start=5, blocks=1))
    for kept in prefixes:
        kept.extent = kept.extent.moved([Move(source=5, target=2, blocks=1)])
    found = prefixes.match(SCOPES[0], [1, 2, 3, 4])
    assert found is not None
    assert found.whole
    assert prefixes.take(found.kept) == Extent(start=2, blocks=1)
