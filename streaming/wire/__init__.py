"""What surfaces have in common on the wire: JSON's types, tools, items, usage, errors, server-sent events."""
