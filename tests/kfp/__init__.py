"""A stand-in for the pipeline server, for tests: it answers, admits and executes as the real one was seen to."""
