"""Plans over a network: a policy server, its client, and the frames between them."""
