"""The labeller: gives every user's images their labels, from one of several providers."""
