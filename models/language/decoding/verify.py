"""Accepting drafts: choose first, then compare.

The target's token at each place is chosen as plain decoding would choose it (see `sampling`), and a drafted token is accepted
if it is that token. What is written is therefore what plain decoding writes, token for token, greedy or sampled, and in
distribution as well: for a drafter that names one token this accepts as often as the rejection sampling of Leviathan et al.
(2023) does, since a guess without chances is a guess of chance one.

The tolerant way, for cascades alone, is that of BiLD (Kim et al. 2023): a drafted token stays unless the target finds it less
likely than its own by more than a margin.
"""

from collections.abc import Callable, Sequence


def verified(
    draft: Sequence[int], chosen: Sequence[int], tolerated: Callable[[int, int], bool] | None = None
) -> list[int]:
    """Return what is written: the drafted tokens that are accepted, and one more of the target's own.

    Args:
        draft: the tokens guessed, in order.
        chosen: the target's token after the first so many of the draft, from 0 to all of them.
        tolerated: whether a token of the draft, by its place, stays although the target would have chosen another.
    """
    for place, (guess, own) in enumerate(zip(draft, chosen, strict=False)):
        if own != guess and (tolerated is None or not tolerated(place, guess)):
            return [*draft[:place], own]
    return [*draft, chosen[len(draft)]]
