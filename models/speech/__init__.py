"""Sound: who speaks when, and later what is said."""
