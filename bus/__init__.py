"""What every agent shares: events, subjects, streams, objects, recordings and the embedded broker."""
