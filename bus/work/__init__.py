"""Durable consumers: events shared among workers, tried again, given up, given back."""
