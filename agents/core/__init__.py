"""The rules, as plain functions and state machines: no asyncio, no NATS, no sockets, no clock.

Time comes in as an argument and chance from the run's seed, so whatever a core decided is decided again when a
recording is replayed through it.
"""
