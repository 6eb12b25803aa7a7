"""Where weights come from: sources fetched into the store, and made into what engines load."""
