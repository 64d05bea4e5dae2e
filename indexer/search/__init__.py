"""From a query's descriptor to photos, places and a position."""
