"""vlmkit's models inside other people's evaluation harnesses."""
