"""Hypothesis profiles: `default` in every run, `long` by `--hypothesis-profile=long`."""

from hypothesis import settings

# A loaded machine is not a failing property.
settings.register_profile("default", deadline=None, print_blob=True)
settings.register_profile("long", parent=settings.get_profile("default"), max_examples=10_000)
settings.load_profile("default")
