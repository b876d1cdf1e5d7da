"""The broker: an embedded server, the connection to one, its streams, logins, permissions and join tokens."""
