"""The language of the bus: values, the envelope of an event, subjects, and their description."""
