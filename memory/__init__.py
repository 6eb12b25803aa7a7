"""What lasts: the database, the session log, the effect ledger, blobs, keys; later, cross-modal recall."""
