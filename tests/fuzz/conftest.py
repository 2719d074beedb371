"""What hypothesis does: little and always the same in CI, much and anew in `make fuzz`."""

import os
import tempfile

from hypothesis import HealthCheck, configuration, settings

# Nothing is written into the repository; what is found becomes a test.
configuration.set_hypothesis_home_dir(f"{tempfile.gettempdir()}/traceml-hypothesis")
COMMON = {
    "database": None,
    "deadline": None,
    "suppress_health_check": (
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,
    ),
}
settings.register_profile("ci", derandomize=True, **COMMON)
settings.register_profile("long", **COMMON)
settings.load_profile("long" if "FUZZ_EXAMPLES" in os.environ else "ci")
