"""Forms of answers: what of a schema an engine can hold, and checking what it cannot."""
