"""Who answers a turn, and whether a call is made: steps that decide, and what they ask on their way."""
