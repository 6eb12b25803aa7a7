"""What all tests share."""

import os

from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is: tests run beside each other, and some flush to a disk.
settings.register_profile("baton", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("baton")

# A server that a test starts answers from rules unless the test asks for a model: those take seconds to load.
os.environ.setdefault("BATON_MODELS", "scripted")

# Test workers inherit a width of 80, and a console keeps the one that it finds when it is made.
os.environ.pop("COLUMNS", None)
