"""What all tests share."""

from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is: tests run beside each other, and some flush to a disk.
settings.register_profile("baton", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("baton")
