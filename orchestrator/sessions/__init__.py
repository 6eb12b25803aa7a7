"""Conversations that last: the handle, the pure state behind it, its journal and its readers."""
