"""Videos frame by frame: a protocol, and one file per decoder behind it."""
