"""The players: each turns one task into a stream of events."""
