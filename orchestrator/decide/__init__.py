"""The decision: who answers, and why."""
