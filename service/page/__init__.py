"""The web page at /: HTML, style and modules as they are sent, with no build step."""
