"""How the trained parts in `models/pretrained` were made: nothing here is needed to serve. See `recipes/README.md`."""
