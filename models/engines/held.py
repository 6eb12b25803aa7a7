"""What holds answers back, around the engines that can hold them to forms; see `models.forms.holding`."""

import random

from models.clock import Clock
from models.forms.checking import Checker
from models.forms.holding import Holding
from models.ports import Engine


def local(engine: Engine, clock: Clock) -> Engine:
    """Put it around an engine whose grammars are llguidance's."""
    from models.decoding.trying import Trying  # not where models are remote: it is not installed there

    trying = Trying(clock)
    return Holding(engine, Checker(clock), trying=trying.begin, close=trying.aclose, chance=random.Random())


def remote(engine: Engine, clock: Clock) -> Engine:
    """Put it around a server, of whose grammars nothing is known: expressions are taken for what it can hold."""
    return Holding(engine, Checker(clock), trying=lambda: lambda _: True, chance=random.Random(), remote=True)
