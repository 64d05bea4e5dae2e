"""The index in the formats of other tools."""
