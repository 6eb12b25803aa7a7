"""A suffix automaton: which ending of a text has occurred in it before, and where.

Blumer et al., "The smallest automaton recognizing the subwords of a text", 1985; used for drafts as in "SAM Decoding:
Speculative Decoding via Suffix Automaton" (Hu et al., arXiv:2411.10666). A text of n tokens makes at most 2n states; adding
a token takes constant time on average.
"""

from array import array
from collections.abc import Iterable

_NONE = -1
_ROOT = 0

# How many of the endings that occur again are told of the newest place, the longest first. In a text like "a a a a ..." there
# are as many as tokens; what is further down the links is a short ending, and an older place of it serves nearly as well.
_REFRESHED = 2


class Automaton:
    """The automaton of a text that grows.

    A state stands for all endings with the same set of places. Most states have one way out, so that the first one lies in
    columns and only the others in a dictionary: some 120 bytes for a token.

    Attributes:
        size: how many tokens have been fed.
        matched: the length of the longest ending of the text that also occurs earlier in it; 0 if none does.
        place: behind which token that earlier occurrence ends: `place + 1` is the index of what followed it. It is a recent
            one, not always the last; without a match it means nothing.
    """

    __slots__ = (
        "_first_target",
        "_first_token",
        "_last",
        "_length",
        "_link",
        "_others",
        "_place",
        "matched",
        "place",
        "size",
    )

    def __init__(self) -> None:
        self.size = 0
        self.matched = 0
        self.place = _NONE
        self._last = _ROOT
        self._link = array("i", [_NONE])  # the longest ending with more places
        self._length = array("i", [0])  # of the longest ending that the state stands for
        self._place = array("i", [_NONE])  # the index of the last token of an occurrence
        self._first_token = array("i", [_NONE])
        self._first_target = array("i", [_NONE])
        self._others: dict[int, dict[int, int]] = {}

    def feed(self, tokens: Iterable[int]) -> None:
        """Let the text grow by `tokens`, which are not negative."""
        # One loop over local names: prompts have thousands of tokens, and steps wait.
        link, length, place = self._link, self._length, self._place
        first_token, first_target, others = self._first_token, self._first_target, self._others
        last, size = self._last, self.size
        for token in tokens:
            newest = len(link)
            link.append(_ROOT)
            length.append(size + 1)
            place.append(size)
            first_token.append(_NONE)
            first_target.append(_NONE)
            state, met = last, _NONE
            while state != _NONE:
                first = first_token[state]
                if first == token:
                    met = first_target[state]
                    break
                if first == _NONE:
                    first_token[state], first_target[state] = token, newest
                elif (ways := others.get(state)) is None:
                    others[state] = {token: newest}
                elif token in ways:
                    met = ways[token]
                    break
                else:
                    ways[token] = newest
                state = link[state]
            if met != _NONE:
                link[newest] = met if length[met] == length[state] + 1 else self._split(state, token, met)
            last = newest
            # Where this ending occurred before; and then, that it has occurred here.
            state = link[newest]
            self.matched, self.place = length[state], place[state]
            for _ in range(_REFRESHED):
                if state == _ROOT:
                    break
                place[state] = size
                state = link[state]
            size += 1
        self._last, self.size = last, size

    def _split(self, state: int, token: int, met: int) -> int:
        """Part `met`: its endings of at most one token more than `state` have a place more from now on. Return their state."""
        link, first_token, first_target, others = self._link, self._first_token, self._first_target, self._others
        part = len(link)
        link.append(link[met])
        self._length.append(self._length[state] + 1)
        self._place.append(self._place[met])
        first_token.append(first_token[met])
        first_target.append(first_target[met])
        if met in others:
            others[part] = others[met].copy()
        link[met] = part
        while state != _NONE:
            if first_token[state] == token:
                if first_target[state] != met:
                    break
                first_target[state] = part
            else:
                ways = others.get(state)
                if ways is None or ways.get(token) != met:
                    break
                ways[token] = part
            state = link[state]
        return part
