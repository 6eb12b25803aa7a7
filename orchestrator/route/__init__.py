"""Which card takes a task."""
