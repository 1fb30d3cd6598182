from hypothesis import settings

# No deadline: the first call into torch is slow. The same examples on every machine.
settings.register_profile("diffcodec", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("diffcodec")
