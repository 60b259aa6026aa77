"""Which samples make up which step, and in which rows: from sizes alone, before anything is decoded."""
