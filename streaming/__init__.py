"""The surfaces: HTTP, the realtime websocket, the page, the command line."""
