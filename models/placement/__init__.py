"""Where engines run: in the gateway, or in a worker process, each device's in one of its own, with frames between."""
