"""The sources of the quickstart: drawings by four artists, and a film clip."""
