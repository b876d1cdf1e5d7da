"""The native headless client: the same protocol and the same training as the page, without a browser."""
