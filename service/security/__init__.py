"""What a request passes before it reaches a route: access, keys, limits, admission."""
