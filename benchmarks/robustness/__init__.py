"""What survives kills, load and broken input."""
