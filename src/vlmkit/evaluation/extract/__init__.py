"""From what a model wrote to its answer. None is a parse failure; nothing is ever guessed.

An extractor is a callable `text -> answer | None` (with the options, for multiple choice). Metrics have
cut off the reasoning before they call one.
"""
