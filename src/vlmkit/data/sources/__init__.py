"""Your own data: tables (how rows are stored) x layouts (what a row means) x media (where pictures are)."""
