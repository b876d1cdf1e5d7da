"""The gateway: serves the page, the objects and the event feed, leases tasks to clients and takes their updates."""
