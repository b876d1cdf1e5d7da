"""Pure cores: rules without clocks, sockets or a bus, tested without any of them."""
