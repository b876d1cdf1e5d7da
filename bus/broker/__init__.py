"""The broker itself: a connection that comes back, the streams, an embedded nats-server, and who may do what on it.

Everything that is said to NATS without being an event or an object is here, with two ways of speaking to it that the
rest builds on: pipelined requests and batched direct reads.
"""
