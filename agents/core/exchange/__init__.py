"""The rules between gateway and clients: messages, leases, uploads, who may do what."""
