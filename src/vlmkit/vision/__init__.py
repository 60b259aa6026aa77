"""Vision encoders and the mergers that turn patches into visual tokens."""
