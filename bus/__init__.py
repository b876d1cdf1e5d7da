"""An event-sourced bus over NATS, which would serve another domain as well.

It knows nothing of learning: what can be said on it is declared by whoever uses it, in classes that derive from
``Payload``. ``Bus`` in ``bus.client`` is its front door.
"""
