"""The routes, one file a group, and what they depend on."""
