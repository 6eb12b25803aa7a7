"""The realtime websocket: wire events, a protocol core without I/O, and its socket adapter."""
