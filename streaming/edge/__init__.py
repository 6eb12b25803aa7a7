"""The edge: how connections are kept, and what every request passes before anybody asks who is calling."""
