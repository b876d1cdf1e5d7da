"""The event stream: saying a fact once, reading in order, live messages, dead letters."""
