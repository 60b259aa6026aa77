"""Ways of asking: how a row of a dataset becomes a question.

What differs in words or numbers between benchmarks stands in their YAML. An ask is composed of what is
shown (`shown`), what is written, what is right (`targets`, `options`), and how questions are named.
"""
