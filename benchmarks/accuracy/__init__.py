"""How often and how surely answers are right."""
