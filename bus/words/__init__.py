"""What can be said on the bus, and how it looks on the wire.

A payload class declares an event once: its type, the tokens of its subject, who may say it, whether it is kept, and
which objects it refers to. Subjects, permissions, the AsyncAPI document, garbage collection and recordings are derived
from that. Beside it lie the small values that events are made of, and the CloudEvents envelope around them.
"""
