"""What following a form may cost at most, wherever it is compiled."""

from llguidance import LLParserLimits

# A step of the device waits for masks, so that what a caller writes must not make one expensive. So bounded, the expression
# `(a{1000}){1000}` is given up after 0.2 s of its start, instead of 5 s of a step; a schema of 150 properties with formats
# needs less than half of it. What is not verbose has nothing of the caller's in its messages.
LIMITS = LLParserLimits(initial_lexer_fuel=50_000, verbose_errors=False)
