"""The native client: a process that trains without a browser, by the same protocol and the same rules."""
