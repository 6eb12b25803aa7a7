"""What holds answers back, around the engines that can hold them to forms; see `models.language.forms.holding`."""

import random

from models.clock import Clock
from models.language.forms.checking import Checker
from models.language.forms.holding import Holding
from models.language.forms.planning import PlanningApart
from models.ports.generate import Engine


def local(engine: Engine, clock: Clock) -> Engine:
    """Put it around an engine whose grammars are llguidance's."""
    return Holding(engine, Checker(clock), PlanningApart(clock), chance=random.Random())


def remote(engine: Engine, clock: Clock) -> Engine:
    """Put it around a server, of whose grammars nothing is known: expressions are taken for what it can hold."""
    planning = PlanningApart(clock, remote=True)
    return Holding(engine, Checker(clock), planning, chance=random.Random(), remote=True)
