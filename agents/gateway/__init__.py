"""The gateway: the one door for clients, by WebSocket and HTTP.

It leases tasks, takes uploads, hands out objects and serves the page. Its rules are in ``agents.core.exchange``; what
is here moves bytes.
"""
