"""Pages on which results are looked at: what a reviewer needs to believe a score."""
