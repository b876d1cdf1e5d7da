"""The agents of federated learning: independent processes that talk over the bus and through it alone.

Each deciding agent is a fold over the stream with a pure core; kill it anywhere, and it reads the stream again and goes
on. One folder is one process; what they share, what is pure, and what is done with a finished run have folders of
their own.
"""
