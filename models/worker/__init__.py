"""In-process engines, each device's in one spawned process of its own: frames between, client here, child there."""
