"""Foreign formats that a store is written in, one a file."""
