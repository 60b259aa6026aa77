"""How vision enters the decoder beyond the input embedding."""
