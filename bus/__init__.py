"""An event-sourced bus over NATS: streams, objects, workers, recordings, a broker; what is said on it others declare."""
