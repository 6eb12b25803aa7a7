"""What an engine is asked, a port for each kind of work."""
