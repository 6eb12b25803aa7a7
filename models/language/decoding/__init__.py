"""Decoding: one engine that serves everybody at once and speculates for each. Needs torch, so it runs in a worker only."""
